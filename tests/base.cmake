cws_test(NAME test_options SOURCES test_options.c LIBS cws_store)
