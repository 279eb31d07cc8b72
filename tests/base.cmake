cws_test(NAME test_options SOURCES test_options.c LIBS cws_store)
cws_test(NAME test_memory_limit SOURCES test_memory_limit.c LIBS cws_store)
