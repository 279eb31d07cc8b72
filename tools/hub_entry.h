/* hub_entry.h - a model in the cache of the Hugging Face Hub: models--ORG--NAME with blobs/, refs/ and
 * snapshots/COMMIT/, whose files are links into blobs. The snapshot is the model. Threads: one. */
#ifndef CWS_HUB_ENTRY_H
#define CWS_HUB_ENTRY_H
#include "store/base/error.h"

/* *out: the snapshot of the entry `path` in fresh memory: the one that refs/main names, else the only one; NULL when
 * path is no such entry. CWS_E_USAGE: there are several and none is named, or none, or path is a whole cache.
 * -errno. */
CWS_MUST_CHECK int cws_hub_snapshot(const char *path, char **out, struct cws_error *err);

#endif
