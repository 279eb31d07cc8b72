/* channel.c - the table of userfaultfd descriptors: makes one for a view, or shares one, and closes it with its last
 * view. */
#include "channel.h"
#include "pager.h"

static struct cws_channel channels[CWS_CHANNELS_MAX] = {[0 ... CWS_CHANNELS_MAX - 1] = {.fd = -1}};

/* A free place, or NULL. */
static struct cws_channel *find_free(void)
{
    for (unsigned i = 0; i < CWS_CHANNELS_MAX; i++)
        if (channels[i].fd < 0)
            return &channels[i];
    return NULL;
}

/* The channel with the fewest views, or NULL. */
static struct cws_channel *find_least(void)
{
    struct cws_channel *least = NULL;
    for (unsigned i = 0; i < CWS_CHANNELS_MAX; i++)
        if (channels[i].fd >= 0 && (!least || channels[i].bytes < least->bytes))
            least = &channels[i];
    return least;
}

/* The program's other threads may fault on the view's address before the view is in the index: the worker wakes them,
 * and they try again. */
static int start(struct cws_channel *c, int (*create)(void))
{
    int fd = create();
    if (fd == -EMFILE && !find_least() && cws_own_fd_raise()) {
        fd = create();
        cws_own_fd_lower();
    }
    if (fd < 0)
        return fd;
    fd = cws_own_fd_keep(fd);
    cws_lock_take(&cws_pager.lock);
    c->fd = fd;
    c->generation++;
    c->views = 0;
    c->bytes = 0;
    cws_lock_drop(&cws_pager.lock);
    int code = cws_workers_watch(fd, (uint64_t)c->generation << 32 | (uint64_t)(c - channels));
    if (code) {
        cws_lock_take(&cws_pager.lock);
        c->fd = -1;
        cws_lock_drop(&cws_pager.lock);
        cws_os_close(fd);
    }
    return code;
}

int cws_channel_open(struct cws_view *v, int (*create)(void))
{
    struct cws_channel *c = find_free();
    int code = c ? start(c, create) : 0;
    if ((code || !c) && !(c = find_least()))
        return code;
    c->views++;
    c->bytes += v->bytes;
    v->channel = c;
    v->uffd = c->fd;
    return 0;
}

void cws_channel_close(struct cws_view *v)
{
    struct cws_channel *c = v->channel;
    v->channel = NULL;
    v->uffd = -1;
    if (!c)
        return;
    c->bytes -= v->bytes;
    if (--c->views)
        return;
    uint32_t users;
    cws_lock_take(&cws_pager.lock);
    int fd = c->fd;
    c->generation++;
    cws_lock_drop(&cws_pager.lock);
    while ((users = atomic_load(&c->users)) != 0)
        cws_wait(&c->users, users);
    cws_lock_take(&cws_pager.lock);
    c->fd = -1;
    cws_lock_drop(&cws_pager.lock);
    cws_os_close(fd);
}

struct cws_channel *cws_channel_use_locked(uint64_t event)
{
    uint32_t i = (uint32_t)event;
    struct cws_channel *c = i < CWS_CHANNELS_MAX ? &channels[i] : NULL;
    if (!c || c->fd < 0 || c->generation != (uint32_t)(event >> 32))
        return NULL;
    atomic_fetch_add(&c->users, 1);
    return c;
}

void cws_channel_unuse_locked(struct cws_channel *c)
{
    if (atomic_fetch_sub(&c->users, 1) == 1)
        cws_wake(&c->users);
}

void cws_channels_after_fork(void)
{
    for (unsigned i = 0; i < CWS_CHANNELS_MAX; i++) {
        if (channels[i].fd >= 0)
            cws_os_close(channels[i].fd);
        channels[i].fd = -1;
        channels[i].views = 0;
        atomic_store(&channels[i].users, 0);
    }
}
