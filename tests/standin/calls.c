/* calls.c - what every call does first: counting, the log, armed failures, the state a call needs. */
#include "state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOG_ROOM 16384
static struct call_site *sites;
struct rule {
    char call[64];
    unsigned left;
    bool always, any;
    CUresult error;
    struct rule *next;
};
static struct rule *rules;
static struct standin_entry log_ring[LOG_ROOM];
static size_t log_count;
static unsigned misuse_count;
static char misuse_text[128];

/* "cuMemFree" names cuMemFree_v2; "cuMemFreeAsync" does not name cuMemFree. */
static bool same_call(const char *wanted, const char *name)
{
    size_t length = strlen(wanted);
    if (strncmp(wanted, name, length) != 0)
        return false;
    return name[length] == 0 || name[length] == '_';
}

static CUresult rule_error_locked(const char *name)
{
    for (struct rule **link = &rules; *link; link = &(*link)->next) {
        struct rule *rule = *link;
        if (!rule->any && !same_call(rule->call, name))
            continue;
        if (!rule->always && --rule->left > 0)
            continue;
        CUresult error = rule->error;
        if (!rule->always) {
            *link = rule->next;
            free(rule);
        }
        return error;
    }
    return CUDA_SUCCESS;
}

static void log_locked(const char *name, unsigned long long a, unsigned long long b)
{
    log_ring[log_count++ % LOG_ROOM] = (struct standin_entry){name, a, b};
}

static CUresult enter_locked(struct call_site *site, unsigned flags, unsigned long long a, unsigned long long b)
{
    if (!site->listed) {
        site->listed = true;
        site->next = sites;
        sites = site;
    }
    site->count++;
    log_locked(site->name, a, b);
    if (flags & CALL_ANY_TIME)
        return CUDA_SUCCESS;
    CUresult error = rule_error_locked(site->name);
    if (error != CUDA_SUCCESS)
        return error;
    if (!standin.initialised && strcmp(site->name, "cuInit") != 0)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (standin.sticky != CUDA_SUCCESS && !(flags & CALL_AFTER_ERROR))
        return standin.sticky;
    if ((flags & CALL_CONTEXT) && !context_current_locked())
        return CUDA_ERROR_INVALID_CONTEXT;
    return flags & CALL_UNSAFE ? capture_refuse_locked() : CUDA_SUCCESS;
}

CUresult call_enter(struct call_site *site, unsigned flags, unsigned long long a, unsigned long long b)
{
    if (standin.pid != 0 && standin.pid != getpid()) /* the lock may be held by a thread that the child does not have */
        return CUDA_ERROR_NOT_INITIALIZED;
    lock();
    return unlock(enter_locked(site, flags, a, b));
}

void standin_fail(const char *call, unsigned n, CUresult error)
{
    struct rule *rule = take_memory(sizeof *rule);
    rule->any = !call;
    if (call)
        snprintf(rule->call, sizeof rule->call, "%s", call);
    rule->left = n;
    rule->always = n == 0;
    rule->error = error;
    lock();
    rule->next = rules;
    rules = rule;
    unlock(0);
}

static void rules_clear_locked(void)
{
    while (rules) {
        struct rule *rule = rules;
        rules = rule->next;
        free(rule);
    }
}

void standin_fail_none(void)
{
    lock();
    rules_clear_locked();
    unlock(0);
}

bool standin_fail_pending(void)
{
    bool pending = false;
    lock();
    for (struct rule *rule = rules; rule; rule = rule->next)
        pending |= !rule->always;
    unlock(0);
    return pending;
}

void standin_break(CUresult error)
{
    lock();
    standin.sticky = error;
    pthread_cond_broadcast(&standin.changed);
    unlock(0);
}

unsigned long standin_calls(const char *call)
{
    unsigned long count = 0;
    lock();
    for (struct call_site *site = sites; site; site = site->next)
        if (!call || same_call(call, site->name))
            count += site->count;
    unlock(0);
    return count;
}

size_t standin_log(struct standin_entry *out, size_t room)
{
    lock();
    size_t kept = log_count < LOG_ROOM ? log_count : LOG_ROOM, count = kept < room ? kept : room;
    for (size_t i = 0; i < count; i++)
        out[i] = log_ring[(log_count - count + i) % LOG_ROOM];
    unlock(0);
    return count;
}

void standin_log_clear(void)
{
    lock();
    log_count = 0;
    unlock(0);
}

void misuse_locked(const char *what)
{
    misuse_count++;
    snprintf(misuse_text, sizeof misuse_text, "%s", what);
}

unsigned standin_misuses(char *text, size_t room)
{
    lock();
    unsigned count = misuse_count;
    if (text && room)
        snprintf(text, room, "%s", misuse_text);
    unlock(0);
    return count;
}

void calls_reset_locked(void)
{
    rules_clear_locked();
    for (struct call_site *site = sites; site; site = site->next)
        site->count = 0;
    log_count = 0;
    misuse_count = 0;
    misuse_text[0] = 0;
}
