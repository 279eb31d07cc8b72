/* tuning.c - the default of each tuned number, what it may be, and how it is found by name. */
#include "tuning.h"

#include <string.h>

#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)
#define US ((uint64_t)1000)
#define MS (1000 * US)
#define SECOND (1000 * MS)

/* X(name, default, least, most, unit, meaning in short), in the order of the struct. No value in these ranges may break
 * a list, an array or a sum: 0 only where nothing is divided by it. */
#define NUMBERS(X)                                                                                                     \
    X(history_sure, 32, 1, 4096, "uses", "a stretch of the past of this length is no chance")                          \
    X(history_sure_still, 8, 0, 4096, "uses", "and goes on while so much of it is left")                               \
    X(history_length_max, 128, 1, 65536, "uses", "longer ones are trusted no more")                                    \
    X(history_skip_max, 8, 1, 1024, "uses", "those that are left out are found in so many")                            \
    X(history_look_at, 64, 1, 65536, "", "ends of stretches that are compared")                                        \
    X(history_look_at_pairs, 4, 1, 65536, "", "uses of a node that are searched for the same one before it")           \
    X(history_better, 2, 1, 1024, "times", "longer than the present one another stretch must be")                      \
    X(history_loss, 4, 1, 65536, "share", "of the stretch that a surprise takes")                                      \
    X(history_loss_again, 2, 1, 65536, "share", "of it that a second surprise in a row takes")                         \
    X(history_walks, 16, 1, 256, "walks", "over all nodes that are remembered")                                        \
    X(history_uses_more, 256, 0, 65536, "uses", "remembered beside them")                                              \
    X(history_uses_max, 32768, 64, MIB, "uses", "remembered at most")                                                  \
    X(order_quota_uses, 5, 1, 65536, "uses", "that stream of a size in so many have memory at a time")                 \
    X(order_visit_uses, 8, 0, 65536, "uses", "a node that comes again within so many has not left")                    \
    X(order_in_flight_bytes, 32 * MIB, 0, 64 * GIB, "bytes", "beside them, for loads and evictions in flight")         \
    X(order_tries, 4, 0, 1024, "", "smaller sizes tried for the largest that streams")                                 \
    X(order_better_share, 32, 1, 65536, "share", "of what stays that another largest size must gain")                  \
    X(order_pace_waits, 16, 1, 65536, "share", "of a round that launches wait, for plans by time")                     \
    X(order_pace_rounds, 2, 1, 65536, "rounds", "after which a plan is judged")                                        \
    X(order_pace_tries, 2, 0, 1024, "", "plans by time before they are judged against the one by uses")                \
    X(order_pace_places, 16, 1, 65536, "", "of a round, whose times are averaged")                                     \
    X(order_pace_longest, 4, 1, 65536, "share", "of a round that work between two uses takes at most")                 \
    X(order_pace_slack, 20, 1, 65536, "share", "by which the link may have more to do for smaller nodes to stay")      \
    X(order_reach_walks, 2, 1, 64, "walks", "over all nodes that the window foresees")                                 \
    X(order_reach_most, 4096, 16, 4 * MIB, "uses", "that it foresees for these at most")                               \
    X(order_reach_more, 8, 1, 65536, "uses", "that it foresees on top")                                                \
    X(order_gap_share, 16, 1, 65536, "share", "of a gap that the next may differ by, to be the same")                  \
    X(order_doubt_max, 12, 1, 255, "uses", "even ones after which a node that surprised is sure again")                \
    X(order_surprise, 4, 0, 255, "uses", "of these, what one uneven gap costs")                                        \
    X(order_stray_share, 16, 1, 65536, "share", "of the period that strays may miss it by, to be a part of it")        \
    X(order_stays, 96, 0, MIB, "uses", "for which a node that strayed is kept")                                        \
    X(order_plan_share, 64, 1, 65536, "share", "of room or period that must move for a new plan")                      \
    X(order_cycle_eighths, 7, 0, 8, "eighths", "of all bytes that a plan needs where nothing repeats")                 \
    X(order_nearly_quarters, 3, 0, 4, "quarters", "of the best victim's distance that is as good")                     \
    X(order_look_at, 16, 1, 65536, "", "victims still in use that are looked at")                                      \
    X(views_window_share, 2, 1, 1024, "share", "of a view budget for the window")                                      \
    X(views_window_least, 4, 1, 65536, "blocks", "of the window, at least")                                            \
    X(views_window_most, 16, 1, 65536, "blocks", "of the window, at most")                                             \
    X(views_newest_share, 2, 1, 1024, "share", "of the window that is waited for right now")                           \
    X(views_rotate, 64, 1, 65536, "share", "of the keepers exchanged in a walk")                                       \
    X(load_most, 12, 1, 64, "loads", "in flight (the manager: 12 at most)")                                            \
    X(load_spare, 2, 0, 64, "loads", "of these, for launches that wait alone")                                         \
    X(load_ahead, 6, 0, 1024, "nodes", "absent ones that memory is made for ahead")                                    \
    X(load_look_at, 64, 1, 65536, "nodes", "that come next and are looked at for these")                               \
    X(staging_share, 32, 3, 1024, "share", "of a budget for staging, up to 64 MiB")                                    \
    X(wake_uses, 8, 1, 65536, "uses", "after which the loader looks again")                                            \
    X(wait_first_ns, 20 * US, US, SECOND, "ns", "first wait for our work on the device")                               \
    X(wait_most_ns, 60 * US, US, SECOND, "ns", "longest such wait")                                                    \
    X(wait_together_ns, 200 * US, US, SECOND, "ns", "such waits before the program's streams are asked")               \
    X(patience_first_ns, 20 * US, US, SECOND, "ns", "first wait for the program's streams")                            \
    X(patience_most_ns, 200 * US, US, SECOND, "ns", "longest such wait")                                               \
    X(patience_waits, 500, 0, MIB, "waits", "without a use between them before the loader sleeps")                     \
    X(victim_wait_ns, 2 * MS, 0, 10 * SECOND, "ns", "for which a launch waits for the best victim")                    \
    X(refusals_most, 50, 0, MIB, "", "times the driver may refuse memory in a row")                                    \
    X(trim_first_ns, 100 * MS, MS, 3600 * SECOND, "ns", "until pools are told first to give memory back")              \
    X(trim_most_ns, 60 * SECOND, MS, 3600 * SECOND, "ns", "between two such times at most")                            \
    X(trim_growth, 4, 1, 1024, "times", "later each time")                                                             \
    X(trim_keep_bytes, 8 * MIB, 0, 64 * GIB, "bytes", "that each pool may keep unused")                                \
    X(trim_much_bytes, 24 * MIB, 0, 64 * GIB, "bytes", "unused in all pools for which it is tried")                    \
    X(pool_step_bytes, 32 * MIB, 0, 64 * GIB, "bytes", "that a pool is expected to grow by at first")                  \
    X(pool_step_share, 16, 1, 1024, "share", "of the budget that this is at most")                                     \
    X(pool_margin_share, 24, 1, MIB, "share", "of the budget that weights leave to pools that grow unasked")           \
    X(spill_unused, 8, 0, GIB, "launches", "after which an allocation may go to host memory, before a launch fails")   \
    X(spill_unused_long, 1024, 0, GIB, "launches", "the same with CODEC_ADOPT=0; else it is adopted as it goes")       \
    X(recent_uses, 64, 0, GIB, "launches", "back that a kernel of NCCL may use what was named by")                     \
    X(look_uses, 32, 1, GIB, "launches", "between searches for weights among what the program made")                   \
    X(look_vain_ns, 2 * MS, 0, 3600 * SECOND, "ns", "between such searches that find nothing, about")                  \
    X(look_new_uses, 64, 0, GIB, "launches", "since a copy of weights, in which what is made may be weights")          \
    X(look_rounds, 2, 0, 64, "rounds", "after which other allocations that are still used may be weights")             \
    X(look_every_ns, 50 * MS, 0, 3600 * SECOND, "ns", "between looks for which loads ahead stop")                      \
    X(adopt_free_share, 4, 1, 1024, "share", "of the budget that is free while no copy is adopted")                    \
    X(reserve_uses, 1024, 0, GIB, "uses", "for which freed memory is kept, where there are no rounds")                 \
    X(reserve_ahead_uses, 32, 0, GIB, "uses", "ahead that the reserve holds memory for")                               \
    X(reserve_over, 2, 0, 64, "times", "what comes and goes that it holds beside the peak")                            \
    X(settle_ns, 20 * MS, 0, SECOND, "ns", "for which the thread of a launch may go on with what hides its pointers")  \
    X(settle_waiting_ns, 200 * US, 0, SECOND, "ns", "the same, while that thread waits for memory")                    \
    X(tier_gain_share, 8, 1, 1024, "share", "of a round's time that compressed weights on the device must gain")       \
    X(tier_ahead_uses, 8, 1, 65536, "uses", "ahead of which a weight that is compressed on the device is decoded")     \
    X(tier_apart_share, 1, 1, 1024, "share", "of the program's time by which the link's may be longer for that")       \
    X(tier_small_share, 16, 1, 65536, "share",                                                                         \
      "of a round's bytes that its smallest weights may make to stay decoded")                                         \
    X(tier_near_share, 200, 1, 65536, "share", "of the shortest round that fewer of them may lose")                    \
    X(mark_every, 16, 1, 1024, "uses", "of a stream between two marks")                                                \
    X(fetch_look_at, 64, 1, 65536, "", "sources without room that a fetcher looks at")                                 \
    X(fetch_leave_share, 8, 1, 1024, "share", "of the host budget for what comes and goes")

#define AS_DEFAULT(name, fallback, least, most, unit, meaning) .name = (fallback),
#define AS_ROW(name, fallback, least, most, unit, meaning)                                                             \
    {#name, unit, meaning, fallback, least, most, offsetof(struct cws_tuning, name)},

const struct cws_tuning cws_tuning_default = {NUMBERS(AS_DEFAULT)};

static const struct cws_tuning_row rows[] = {NUMBERS(AS_ROW)};
enum { ROWS = sizeof rows / sizeof *rows };
_Static_assert(ROWS * sizeof(uint64_t) == sizeof(struct cws_tuning), "each number has a row");

bool cws_tuning_row(size_t i, struct cws_tuning_row *out)
{
    if (i >= ROWS)
        return false;
    *out = rows[i];
    return true;
}

bool cws_tuning_find(const char *name, struct cws_tuning_row *out)
{
    for (size_t i = 0; i < ROWS; i++)
        if (strcmp(rows[i].name, name) == 0)
            return cws_tuning_row(i, out);
    return false;
}

uint64_t cws_tuning_get(const struct cws_tuning *t, const struct cws_tuning_row *row)
{
    uint64_t value;
    memcpy(&value, (const char *)t + row->offset, sizeof value);
    return value;
}

bool cws_tuning_set(struct cws_tuning *t, const char *name, uint64_t value)
{
    struct cws_tuning_row row;
    if (!cws_tuning_find(name, &row) || value < row.least || value > row.most)
        return false;
    memcpy((char *)t + row.offset, &value, sizeof value);
    return true;
}
