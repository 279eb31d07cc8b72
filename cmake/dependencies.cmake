# Third-party libraries from the distribution, each as cws_dep_<name>. An archive is preferred, so that the shim
# and the command run on machines that lack the libraries; a missing library is named with its package.

function(cws_dependency name header library package)
  find_path(CWS_${name}_INCLUDE ${header})
  set(candidates ${library})
  if(CWS_STATIC_DEPS)
    set(candidates lib${library}.a ${library})
  endif()
  find_library(CWS_${name}_LIBRARY NAMES ${candidates})
  if(NOT CWS_${name}_INCLUDE OR NOT CWS_${name}_LIBRARY)
    message(FATAL_ERROR "${name} was not found. Install it: apt-get install ${package}")
  endif()
  add_library(cws_dep_${name} INTERFACE)
  target_include_directories(cws_dep_${name} SYSTEM INTERFACE ${CWS_${name}_INCLUDE})
  target_link_libraries(cws_dep_${name} INTERFACE ${CWS_${name}_LIBRARY})
  message(STATUS "${name}: ${CWS_${name}_LIBRARY}")
endfunction()

cws_dependency(uring liburing.h uring liburing-dev)
cws_dependency(zstd zstd.h zstd libzstd-dev)
cws_dependency(jansson jansson.h jansson libjansson-dev)

# xxHash is used as a header (XXH_INLINE_ALL), so that no library is needed to run.
find_path(CWS_xxhash_INCLUDE xxhash.h)
if(NOT CWS_xxhash_INCLUDE)
  message(FATAL_ERROR "xxHash was not found. Install it: apt-get install libxxhash-dev")
endif()
add_library(cws_dep_xxhash INTERFACE)
target_include_directories(cws_dep_xxhash SYSTEM INTERFACE ${CWS_xxhash_INCLUDE})
