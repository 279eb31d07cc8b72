/* verbs.h - what main.c needs to know of each verb of the command. One cmd_<name>.c defines each.
 *
 * Exit status of every verb but `run`: 0 fine, 1 a finding (a damaged file, paging that cannot work), 2 usage or I/O.
 * Data goes to stdout, talk to stderr; main.c checks that stdout could be written. */
#ifndef CWS_VERBS_H
#define CWS_VERBS_H

enum cws_exit { CWS_EXIT_FINE = 0, CWS_EXIT_FINDING = 1, CWS_EXIT_FAILURE = 2 };

struct cws_verb {
    const char *name;
    const char *summary; /* one line for the list of verbs */
    const char *help;    /* usage, options and examples; ends with a newline */
    /* argv[0] is the verb. --help was already handled. Returns an exit status. */
    int (*run)(int argc, char **argv);
};

extern const struct cws_verb cws_verb_pack, cws_verb_unpack, cws_verb_inspect, cws_verb_verify, cws_verb_doctor,
    cws_verb_run, cws_verb_budget, cws_verb_top, cws_verb_plot;

#endif
