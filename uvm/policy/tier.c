/* tier.c - the share of a model that stays compressed in the memory of its device. */
#include "tier.h"

#include <math.h>

enum { STEPS = 256 };

/* With so much compressed, where the rest of the room has decoded weights. */
static double predict(const struct cws_tier_round *r, double compressed, double *link)
{
    double room = r->room / r->bytes, ratio = r->stored / r->bytes;
    double decoded = fmin(1 - compressed, room - ratio * compressed);
    *link = (1 - compressed - decoded) * r->stored / r->link;
    double host = r->host_ns + (1 - decoded) * r->count * r->host_call_ns;
    double device = r->device_ns + (1 - decoded) * r->bytes / r->decode;
    return fmax(*link, fmax(host, device));
}

struct cws_tier_shares cws_tier_plan(const struct cws_tier_round *r, const struct cws_tuning *t)
{
    double room = r->room / r->bytes, ratio = r->stored / r->bytes;
    struct cws_tier_shares out = {.decoded = fmin(1, fmax(0, room))};
    out.ns = out.ns_without = predict(r, 0, &out.link_ns);
    if (!(room > 0) || room >= 1 || !(ratio < 1))
        return out;
    double link;
    /* all of the room, or until nothing streams */
    double most = fmin(room / ratio, (1 - room) / (1 - ratio)), best = out.ns;
    for (int i = 1; i <= STEPS; i++)
        best = fmin(best, predict(r, most * i / STEPS, &link));
    if (best * (1 + 1 / (double)t->tier_gain_share) > out.ns)
        return out;
    for (int i = 1; i <= STEPS; i++) {
        double compressed = most * i / STEPS;
        out.ns = predict(r, compressed, &out.link_ns);
        if (out.ns > best * (1 + 1 / (double)t->tier_near_share))
            continue;
        out.compressed = compressed;
        out.decoded = room - ratio * compressed;
        break;
    }
    return out;
}
