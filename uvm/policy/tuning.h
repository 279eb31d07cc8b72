/* tuning.h - the numbers that were chosen by trying: of the policies (order.h, history.h, policy.h) and of the CUDA
 * manager that drives one of them. In one struct, so that tools/bench/replay_policy can set and sweep them
 * (`--tuning` lists them); a program always runs with the defaults. docs/notes/replacement.md has what was measured.
 *
 * history_, order_ and views_ are read by the files of this folder, load_ and staging_ by the model of the loader
 * (tools/bench/replay_device.c). The others are the CUDA manager's alone; its simulation (replay_loader.c)
 * has some of them, as they are by default.
 *
 * What a number belongs to by its nature, as the size of an array, is no number of these. */
#ifndef CWS_TUNING_H
#define CWS_TUNING_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "Less" and "more" say what gets worse with less or more of it, as far as that is known. A share of N is one part in
 * N. */
struct cws_tuning {
    /* --- history.c: what comes next --- */

    /* Uses that a stretch of the past must agree with the present, to be no chance. Less: routed experts are taken for
     * a repetition. More: a repetition is known later. */
    uint64_t history_sure;
    /* Uses, of history_sure, that must be left after surprises for it to go on. Less: what has ended is still
     * expected. More: a few uses out of order end a repetition. */
    uint64_t history_sure_still;
    /* Uses that are compared and counted at most; a longer stretch is trusted no more. Less: rounds within rounds are
     * not told apart. More: each look compares more, and old surprises count for less. */
    uint64_t history_length_max;
    /* Uses ahead in which one that was not the next is found: those between were left out. Less: what is left out ends
     * the match. More: a use out of order is taken for a jump. */
    uint64_t history_skip_max;
    /* Earlier uses of the same node whose stretches are compared, in a look. Less: the right one of many rounds may
     * not be among them. More: each look takes longer. */
    uint64_t history_look_at;
    /* Earlier uses of a node that are searched for one with the same node before it. Less: the last one is taken
     * though another fits. More: each use that is foreseen without a period takes longer. */
    uint64_t history_look_at_pairs;
    /* Times the present stretch that another one must be longer than, to take its place. Less: it changes at each
     * surprise. More: a wrong one stays. */
    uint64_t history_better;
    /* Share of the stretch that one surprise takes, rounded down. Less (a larger share): uses out of order end a
     * repetition. More: what has ended is still expected. */
    uint64_t history_loss;
    /* The same for a surprise that follows another, rounded up. */
    uint64_t history_loss_again;
    /* Walks over all nodes that are remembered, and uses beside them. Less: a period longer than half of all that is
     * not found. More: memory (24 bytes each, twice as many). */
    uint64_t history_walks;
    uint64_t history_uses_more;
    /* Uses that are remembered at most; the ring has room for twice as many. Less: as above, with many nodes. More:
     * memory, and a longer walk when nodes are forgotten. */
    uint64_t history_uses_max;

    /* --- order.c: what stays, what goes --- */

    /* Consecutive uses: as many nodes of a size have memory at a time as stream in so many, wherever in the round.
     * Less: launches wait for weights. More: fewer hits. */
    uint64_t order_quota_uses;
    /* A node that is used again within so many uses (or a quarter of a round, if that is less) counts once in a plan.
     * Less: what several kernels name one after the other is a node that comes often, which stays first. More: a
     * node that does come often may have to stream. */
    uint64_t order_visit_uses;
    /* Beside them, for loads and evictions in flight. In bytes. Less: launches wait for memory, on a GPU more than in
     * the model. More: fewer hits. */
    uint64_t order_in_flight_bytes;
    /* Smaller sizes that are tried for the largest that streams. Less: a few huge nodes make the window large. More: a
     * plan takes longer. */
    uint64_t order_tries;
    /* Share of what stays by which another bound for what streams must be better than the last plan's. Less (a larger
     * share): the plan is not that of the room. More: a little room more or less exchanges what stays. */
    uint64_t order_better_share;
    /* Share of a round's time that must be stalls for plans by time to be tried (pace.h). Less (a larger share): rounds
     * stall. More: plans are tried that gain nothing, and nodes move for them. */
    uint64_t order_pace_waits;
    /* Rounds after which a plan is judged, without the one in which nodes moved for it. Less: a round that was slow by
     * chance decides. More: what is better comes late. */
    uint64_t order_pace_rounds;
    /* Plans by time one after the other, before the last is judged; 0: none is made. Less: the pace is not known well.
     * More: nodes move more often. */
    uint64_t order_pace_tries;
    /* Parts of a round over which times are averaged. Less: the link rests in one part and is behind in another. More:
     * what one launch waited is taken for work. */
    uint64_t order_pace_places;
    /* Share of a round that the work between two uses takes at most. Less (a larger share): a pause of the program is
     * work. More: a long kernel is cut. */
    uint64_t order_pace_longest;
    /* Share of what the link has to do a unit of time by which that may be more, for small nodes to stay. Less (a
     * larger share): fewer, larger loads, less evenly. More: loads of small nodes, with their calls. */
    uint64_t order_pace_slack;
    /* The window foresees a period, or so many walks over all nodes, but not more uses than reach_most for these; and
     * reach_more on top. Less: nothing is known of what is needed late, so the wrong node goes. More: memory, and time
     * when the window is made anew. */
    uint64_t order_reach_walks;
    uint64_t order_reach_most;
    uint64_t order_reach_more;
    /* Share of a gap between two uses of a node by which the next may differ and count as the same. Less (a larger
     * share): what is uneven is loaded ahead. More: what is even is not. */
    uint64_t order_gap_share;
    /* Even gaps after which a node that surprised is sure again, at most; 255 at most. Less: routed experts are
     * guessed. More: what has become even is loaded late for long. */
    uint64_t order_doubt_max;
    /* Of these, what one uneven gap costs. Less: as above. More: as above. */
    uint64_t order_surprise;
    /* Share of the period by which the distance of two uses out of order may differ from it, and they count as a part
     * of the order. Less (a larger share): a stray changes what is foreseen. More: what is new is learned late. */
    uint64_t order_stray_share;
    /* Uses for which a node that strayed is kept. Less: a stack that still holds its address has it loaded again.
     * More: room. */
    uint64_t order_stays;
    /* Share of the room, or of the period, by which that must have moved for a new plan. Less (a larger share): the
     * plan is not that of the room. More: plans are made often, each a walk over all. */
    uint64_t order_plan_share;
    /* Eighths of all bytes that the window must have for a first plan, where there is no repetition. Less: one use out
     * of order makes a plan of a part. More: none where a part of a model is not used. */
    uint64_t order_cycle_eighths;
    /* Quarters of the best victim's distance that one which can go now must have, to go in its place. Less: what is
     * needed soon goes and comes again. More: loads wait for the device. */
    uint64_t order_nearly_quarters;
    /* Victims that are still in use which are looked at. Less: loads wait though something could go. More: time in the
     * lock, and the driver is asked more often. */
    uint64_t order_look_at;

    /* --- policy.c, next.c: blocks of views --- */

    /* The window for demand and readahead: a share of the budget, but at least and at most so many blocks. Less:
     * blocks that were decoded ahead are dropped before their use. More: fewer keepers. */
    uint64_t views_window_share;
    uint64_t views_window_least;
    uint64_t views_window_most;
    /* Share of the window, the newest, that instructions wait for right now: a keeper goes before it, and a guess gets
     * none of it. */
    uint64_t views_newest_share;
    /* One in so many keepers is exchanged in the time of a walk. Less: hits are lost. More: those that nobody uses any
     * more are found late. */
    uint64_t views_rotate;

    /* --- the loader, and its model --- */

    /* Loads in flight. The manager takes no more than CWS_GPU_LOADS, which it has room for. Less: the link stands
     * still between two. More: memory is taken by what is not needed yet. */
    uint64_t load_most;
    /* Of these, those that only a launch that waits may use. Less: it waits behind guesses. More: less is loaded
     * ahead. */
    uint64_t load_spare;
    /* Absent nodes, of those that come next, that memory is made for ahead of their use. Less: the link is idle while
     * evictions run. More: what is needed sooner goes. */
    uint64_t load_ahead;
    /* Nodes that come next which are looked at for these, absent or not. Less: the link is idle before a stretch that
     * streams. More: time in the lock. */
    uint64_t load_look_at;
    /* Share of the budget for staging, up to what its slots take. Less (a larger share): less room for weights. More:
     * small copies. */
    uint64_t staging_share;

    /* --- the CUDA manager alone --- */

    /* Uses after which the loader looks again, where nothing could be loaded. Less: it wakes for nothing. More: it
     * starts late. */
    uint64_t wake_uses;
    /* Waits for our own work on the device: the first, the longest, and all together before the program's streams are
     * looked at again. In ns. Less: the loader's thread takes time from the program's. More: the link is idle. */
    uint64_t wait_first_ns;
    uint64_t wait_most_ns;
    uint64_t wait_together_ns;
    /* Waits for the program's streams, which can only be asked: the first, the longest, in ns; and how many with no
     * use between them, before the loader sleeps until there is one. Less, more: as above. */
    uint64_t patience_first_ns;
    uint64_t patience_most_ns;
    uint64_t patience_waits;
    /* For which a launch waits for the best victim while the device comes no further, before anything that can go does.
     * In ns. Less: what is needed soon goes. More: where what runs waits for that launch, all stand still. */
    uint64_t victim_wait_ns;
    /* Times in a row that the driver refuses memory inside the budget, before a launch fails. Less: it fails although
     * memory was about to come free. More: it fails late. */
    uint64_t refusals_most;
    /* Pools are told to give back what they do not use: first after trim_first_ns, then each time trim_growth times
     * later, trim_most_ns at most. Less: what a pool needs again soon is taken from it. More: less room for weights. */
    uint64_t trim_first_ns;
    uint64_t trim_most_ns;
    uint64_t trim_growth;
    /* What each may keep unused, and what all must have unused for it to be tried. In bytes. */
    uint64_t trim_keep_bytes;
    uint64_t trim_much_bytes;
    /* That a pool is expected to grow by at first: so many bytes, or this share of the budget where that is less. What
     * it does is learned. */
    uint64_t pool_step_bytes;
    uint64_t pool_step_share;
    /* Share of the budget, a step at most, that weights leave alone where a pool has memory: it may grow although what
     * it has would do. Less (a larger share): less room for weights. More: the budget is exceeded for a moment. */
    uint64_t pool_margin_share;
    /* Launches since its last use, after which an allocation of the program may go to host memory, where a launch or an
     * allocation would fail otherwise. Less: what hidden pointers reach goes, which they do not survive. More: memory
     * is refused though something could have gone. */
    uint64_t spill_unused;
    /* The same where nothing is adopted. Where it is, what goes to host memory after so many is adopted at once. Less:
     * activations are taken for weights. More: weights that kernels wrote go out twice before they page. */
    uint64_t spill_unused_long;
    /* A kernel of NCCL may use what so many launches before it named. Less: it reaches memory that went. More: memory
     * waits for it that it does not use. */
    uint64_t recent_uses;
    /* What the program made is searched for weights (look.h) after so many launches. Less: searches take time from the
     * loader. More: weights are found late. */
    uint64_t look_uses;
    /* About so far apart are searches that find nothing, where launches come fast. Less: each wakes the loader and goes
     * through all allocations, which launches wait for. More: weights are found late. */
    uint64_t look_vain_ns;
    /* Launches after a copy of weights in which an allocation is looked at as soon as it was used. Less: weights that a
     * program makes while it loads are found in its rounds. More: so are activations of the first round, in vain. */
    uint64_t look_new_uses;
    /* Rounds after which any other allocation is. Less: activations that live long are. More: weights are found late.
     */
    uint64_t look_rounds;
    /* How often loads ahead stop for a moment for a look, where the loader never rests. Less: the link is idle. More:
     * weights are found late. */
    uint64_t look_every_ns;
    /* Share of the budget that must be left for copies from ordinary memory not to be adopted. Less (a larger share): a
     * program that fits pins host memory for what stays. More: what was copied before leaves little room for what
     * pages. */
    uint64_t adopt_free_share;
    /* Uses of weights since it was freed after which memory of the program leaves the reserve for its next allocations,
     * where the order has no rounds (else two of them). Less: activations take memory from weights again and again.
     * More: what is freed for good is late for weights. */
    uint64_t reserve_uses;
    /* Uses ahead for whose need of memory the reserve holds some, and makes it free. Less: allocations wait for
     * evictions. More: less room for weights around a peak. */
    uint64_t reserve_ahead_uses;
    /* What the reserve may hold over what was needed: so many times what came and went there. Less: sizes that take
     * turns are made anew. More: memory that nobody allocates again is not there for weights. */
    uint64_t reserve_over;
    /* For which memory that a launch named is not given up, where its thread has queued nothing since and may be about
     * to queue what reaches it through hidden pointers. In ns. Less: that kernel faults, where the thread was put off
     * its processor between the two. More: what others wait for comes later. */
    uint64_t settle_ns;
    /* The same where the thread itself waits for memory. In ns. More: where memory is shortest, each launch waits for
     * it. */
    uint64_t settle_waiting_ns;
    /* Part of a round's time that keeping weights compressed on the device must gain. Less: it comes and goes where it
     * hardly matters. More: gains are left. */
    uint64_t tier_gain_share;
    /* Uses ahead from which on a weight that is compressed on the device is decoded. Less: launches wait for it. More:
     * memory that what comes over the link could have. */
    uint64_t tier_ahead_uses;
    /* Part of a program's own time by which the link's may be longer, for weights that are near to stream in memory of
     * their own. Less: the link has nothing to do at times. More: memory where the link has work all the time
     * anyway. */
    uint64_t tier_apart_share;
    /* Part of a round's bytes that the smallest weights may make to stay decoded whatever else is planned. Less: their
     * loads cost calls. More: room that others lack. */
    uint64_t tier_small_share;
    /* Part of the shortest predicted round that a smaller share may lose. Less: more memory for little. */
    uint64_t tier_near_share;
    /* Uses of a stream between two marks. Less: calls to the driver for each launch. More: what is done is known
     * late. */
    uint64_t mark_every;
    /* Sources that wait for host memory which a fetcher looks at. Less: one that would fit is not found. More: time in
     * the lock. */
    uint64_t fetch_look_at;
    /* Share of the host budget that is left to what comes and goes. Less (a larger share): fewer stored bytes stay.
     * More: what does not stay waits. */
    uint64_t fetch_leave_share;
};

extern const struct cws_tuning cws_tuning_default;

/* One number. All strings are static. */
struct cws_tuning_row {
    const char *name, *unit, *meaning; /* meaning: in short */
    uint64_t fallback, least, most;    /* the default, and what it may be: both ends are legal */
    size_t offset;                     /* of the uint64_t in struct cws_tuning */
};

/* Row i, in the order of the struct; false past the end. */
bool cws_tuning_row(size_t i, struct cws_tuning_row *out);
/* The row of that name; false: there is none. */
bool cws_tuning_find(const char *name, struct cws_tuning_row *out);
uint64_t cws_tuning_get(const struct cws_tuning *t, const struct cws_tuning_row *row);
/* False, and nothing is changed: there is no number of that name, or it cannot be that. */
bool cws_tuning_set(struct cws_tuning *t, const char *name, uint64_t value);
#endif
