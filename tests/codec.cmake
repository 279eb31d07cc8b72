cws_test(NAME test_codec SOURCES test_codec.c LIBS cws_store m)
cws_test(NAME test_codec_malformed SOURCES test_codec_malformed.c LIBS cws_store cws_dep_zstd m)
cws_test(NAME test_content_hash SOURCES test_content_hash.c LIBS cws_store m)
