/* channel.h - the userfaultfd descriptors of views, from which workers read fault messages. While there are few
 * views each has one of its own, since one descriptor does not scale over many faulting threads; further views
 * share, and so do views for which no descriptor is left. A channel ends with its last view. Only uvm/ includes it. */
#ifndef CWS_CHANNEL_H
#define CWS_CHANNEL_H
#include "store/base/error.h"
#include <stdatomic.h>
#include <stdint.h>

struct cws_view;

enum { CWS_CHANNELS_MAX = 64 };

struct cws_channel {
    uint64_t bytes;         /* views lock; of the views */
    int fd;                 /* -1: free. Changed under both locks */
    uint32_t generation;    /* pager lock; with the index it names the channel in epoll */
    uint32_t views;         /* views lock */
    _Atomic uint32_t users; /* pager lock; workers that read from it. Closing waits for 0 */
};

/* Gives the view a channel: v->channel and v->uffd. `create` makes a descriptor that is ready for registering, or is
 * -errno; it is asked while there are fewer than CWS_CHANNELS_MAX. The views lock is held. 0, or -errno when no view
 * has a channel to share. */
CWS_MUST_CHECK int cws_channel_open(struct cws_view *v, int (*create)(void));
/* Takes it away; nothing of the view is mapped. The views lock is held, the pager lock is not. No channel: nothing
 * happens. */
void cws_channel_close(struct cws_view *v);
/* The channel that an epoll event means, in use until unuse; NULL: it ended. */
struct cws_channel *cws_channel_use_locked(uint64_t event);
void cws_channel_unuse_locked(struct cws_channel *c);
/* In a forked child: the descriptors are the parent's. */
void cws_channels_after_fork(void);
#endif
