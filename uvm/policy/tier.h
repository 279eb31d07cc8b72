/* tier.h - how much of a model stays compressed in the memory of its device. A weight that does is decoded there for
 * each use, and does not cross the link: it takes the room of its stored bytes instead of its decoded ones, and costs
 * what a decode and the calls for its memory cost.
 *
 * One round, in which each weight is used once, is described by its totals; the best shares are found by trying them.
 * Pure arithmetic, no state. Threads: any. */
#ifndef CWS_TIER_H
#define CWS_TIER_H
#include "tuning.h"

struct cws_tier_round {
    double bytes, stored;      /* of its weights: decoded, compressed */
    double count;              /* of them */
    double room;               /* bytes for weights that stay, decoded or compressed */
    double link;               /* stored bytes a ns */
    double decode;             /* decoded bytes a ns, with the hash that an eviction takes */
    double host_ns, device_ns; /* of the program's launching thread, and of its kernels, without paging */
    double host_call_ns;       /* that a load and an eviction hold the launching thread up */
};

struct cws_tier_shares { /* of a round's bytes; what neither is streams over the link */
    double compressed;   /* 0: it does not pay */
    double decoded;
    double link_ns;        /* of a round, in which the link is busy */
    double ns, ns_without; /* predicted time of a round, and that with compressed = 0 */
};

/* The least share for which the round is nearly as short as it can be, or none where that gains less than
 * tier_gain_share. */
struct cws_tier_shares cws_tier_plan(const struct cws_tier_round *r, const struct cws_tuning *t);
#endif
