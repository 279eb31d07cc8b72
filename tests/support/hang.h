/* hang.h - how long a test waits for what must happen before it calls that a hang. Longer than anything takes, also
 * beside other work and under a sanitizer, and shorter than ctest's limit, so that the test itself says what it waited
 * for. Nothing passes or fails by being slow. */
#ifndef CWS_TESTS_HANG_H
#define CWS_TESTS_HANG_H

enum { HANG_SECONDS = 900 };

#endif
