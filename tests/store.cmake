# The file format: parser, reader, store, writer. Fault injection replaces these functions at link time (inject.h).
set(INJECT_WRAPS malloc calloc realloc aligned_alloc mmap pthread_create cws_os_pread cws_os_pwrite cws_os_fsync cws_os_renameat
  cws_os_openat cws_os_ioctl cws_os_dup cws_os_fstat cws_os_fstatat io_uring_queue_init_params io_uring_submit __io_uring_get_cqe)
list(TRANSFORM INJECT_WRAPS PREPEND "-Wl,--wrap=")

cws_test(NAME test_safetensors SOURCES test_safetensors.c sample_model.c LIBS cws_store m)
cws_test(NAME test_types SOURCES test_types.c sample_model.c LIBS cws_store m)
cws_test(NAME test_store SOURCES test_store.c sample_model.c LIBS cws_store m)
if(TARGET cws_shared)
  cws_test(NAME test_abi SOURCES test_abi.c sample_model.c LIBS cws_shared m)
endif()
cws_test(NAME test_malformed SOURCES test_malformed.c sample_model.c LIBS cws_store m)
foreach(name test_memory test_reader test_writer)
  cws_test(NAME ${name} SOURCES ${name}.c sample_model.c inject.c LIBS cws_store cws_dep_uring m)
  if(TARGET ${name})
    target_link_options(${name} PRIVATE ${INJECT_WRAPS})
  endif()
endforeach()

cws_test(NAME test_trace SOURCES test_trace.c trace_file.c sample_model.c inject.c LIBS cws_store cws_dep_uring cws_dep_jansson m)
if(TARGET test_trace)
  target_link_options(test_trace PRIVATE ${INJECT_WRAPS})
endif()

# Not run by the tests: writes tests/golden and tests/malformed anew.
if(CWS_TESTS)
  add_executable(make_golden EXCLUDE_FROM_ALL make_golden.c sample_model.c)
  target_include_directories(make_golden PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(make_golden PRIVATE cws_store cws_dep_xxhash cws_flags Threads::Threads m)
endif()

cws_fuzz(NAME fuzz_header SOURCES fuzz_header.c LIBS cws_store m)
cws_fuzz(NAME fuzz_blob SOURCES fuzz_blob.c LIBS cws_store cws_dep_xxhash m)
cws_fuzz(NAME fuzz_index SOURCES fuzz_index.c LIBS cws_store cws_dep_xxhash m)
