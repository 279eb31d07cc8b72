/* The share of a model that stays compressed on its device: as much as the link is slower than the program, all of the
 * room or what is missing at most, and nothing where that gains little, where all fits, or where the device has no
 * time to decode. */
#include "uvm/policy/tier.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define GB 1e9
#define MS 1e6

/* About what Llama-3.1-8B's shape is at a batch of 1, on a fast card. */
static struct cws_tier_round usual(double room)
{
    return (struct cws_tier_round){.bytes = 14 * GB,
                                   .stored = 9.35 * GB,
                                   .count = 160,
                                   .room = room,
                                   .link = 50,
                                   .decode = 1300,
                                   .host_ns = 31 * MS,
                                   .device_ns = 6 * MS,
                                   .host_call_ns = 4e4};
}

static struct cws_tier_shares plan(const struct cws_tier_round *r) { return cws_tier_plan(r, &cws_tuning_default); }

static double room_of(const struct cws_tier_round *r, struct cws_tier_shares s)
{
    return s.compressed * r->stored + s.decoded * r->bytes;
}

/* The prediction without the tier is the link's time for what does not fit, or the program's own. */
static void without_it_a_round_is_the_longest_of_its_parts(void **state)
{
    (void)state;
    struct cws_tier_round r = usual(7 * GB);
    assert_true(fabs(plan(&r).ns_without / (r.stored / 2 / r.link) - 1) < 0.01);
    r.link = 1e6;
    assert_true(plan(&r).ns_without >= r.host_ns && plan(&r).ns_without < r.host_ns + 160 * r.host_call_ns);
    r.device_ns = 300 * MS;
    assert_true(plan(&r).ns_without >= r.device_ns);
}

static void what_streams_is_what_the_link_has_time_for(void **state)
{
    (void)state;
    for (double room = 8 * GB; room < 13.5 * GB; room += 0.5 * GB) {
        struct cws_tier_round r = usual(room);
        struct cws_tier_shares s = plan(&r);
        double streams = 1 - s.compressed - s.decoded;
        assert_true(s.decoded >= -1e-9 && streams >= -1e-9);
        assert_true(room_of(&r, s) <= room * 1.001); /* never more than there is */
        assert_true(fabs(s.link_ns - streams * r.stored / r.link) < 1);
        if (s.compressed == 0)
            continue;
        assert_true(s.ns < s.ns_without / 1.1);
        assert_true(room_of(&r, s) > room * 0.999); /* and not less */
    }
    struct cws_tier_round r = usual(10 * GB);
    assert_true(plan(&r).compressed > 0.2);
    assert_true(plan(&r).ns < 1.25 * r.host_ns); /* nothing waits for the link any more */
}

static void where_little_fits_all_of_the_room_is_compressed(void **state)
{
    (void)state;
    struct cws_tier_round r = usual(4 * GB);
    struct cws_tier_shares s = plan(&r);
    assert_true(fabs(s.compressed - r.room / r.stored) < 0.02 && s.decoded < 0.02);
    assert_true(fabs(s.ns / s.ns_without - (1 - r.room / r.stored) / (1 - r.room / r.bytes)) < 0.02);
}

static void it_does_not_pay(void **state)
{
    (void)state;
    struct cws_tier_round fits = usual(15 * GB), no_room = usual(0), under = usual(-1 * GB), raw = usual(7 * GB),
                          hidden = usual(7 * GB), captured = usual(11 * GB), little = usual(0.5 * GB);
    raw.stored = raw.bytes;
    hidden.device_ns = 400 * MS; /* a prefill: the link has time enough */
    captured.decode = 50;        /* decoding takes the device as long as the link would */
    const struct cws_tier_round *const all[] = {&fits, &no_room, &under, &raw, &hidden, &captured, &little};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct cws_tier_shares s = plan(all[i]);
        assert_true(s.compressed == 0);
        assert_true(s.decoded >= 0 && s.decoded <= 1);
        assert_true(s.ns == s.ns_without);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_it_a_round_is_the_longest_of_its_parts),
        cmocka_unit_test(what_streams_is_what_the_link_has_time_for),
        cmocka_unit_test(where_little_fits_all_of_the_room_is_compressed),
        cmocka_unit_test(it_does_not_pay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
