# Compile options that every target of ours shares, and helpers that declare targets in one line.
# Third-party code never sees them: they travel with the interface target expertd_options only.
find_package(Threads REQUIRED)

add_library(expertd_options INTERFACE)
target_include_directories(expertd_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(expertd_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wno-unused-parameter -Wno-missing-field-initializers>)
target_link_libraries(expertd_options INTERFACE Threads::Threads)

if(EXPERTD_WERROR)
  target_compile_options(expertd_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(expertd_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wthread-safety -Werror=thread-safety>)
endif()
if(EXPERTD_SANITIZER)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")  # GCC 12's false alarm on short literals assigned to std::string (its bug 105651)
    target_compile_options(expertd_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
  endif()
  target_compile_options(expertd_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${EXPERTD_SANITIZER} -fno-omit-frame-pointer>)
  target_link_options(expertd_options INTERFACE -fsanitize=${EXPERTD_SANITIZER})
  if(EXPERTD_SANITIZER MATCHES "undefined")
    target_compile_options(expertd_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=undefined>)
  endif()
endif()

# expertd_precompile(<target> <set>): `target` finds the third-party headers of expertd_headers_<set> compiled. Only Clang gains by
# that (3 of 5 s of CPU for a file at -O0; GCC 0.7 of 6), so a preset that wants it says so. Our own headers stay out: whether a file includes
# what it uses of ours still shows. A source with flags of its own (-O1, -mavx2) needs SKIP_PRECOMPILE_HEADERS.
option(EXPERTD_PRECOMPILE "Precompile third-party headers: for Clang" OFF)
set(expertd_headers_plain
  <algorithm> <array> <atomic> <chrono> <condition_variable> <deque> <fstream> <functional> <map> <memory> <mutex> <optional> <random>
  <string> <thread> <utility> <variant> <vector>
  <absl/container/flat_hash_map.h> <absl/status/statusor.h> <absl/strings/str_cat.h> <absl/strings/str_format.h>
  <absl/strings/str_join.h> <absl/strings/str_split.h> <absl/time/time.h> <absl/types/span.h>
  <nlohmann/json.hpp>)
set(expertd_headers_grpc ${expertd_headers_plain}
  <google/protobuf/descriptor.pb.h> <google/protobuf/map_field_inl.h> <google/protobuf/map_entry.h>
  <grpcpp/generic/async_generic_service.h> <grpcpp/grpcpp.h> <grpcpp/impl/codegen/proto_utils.h> <grpcpp/support/server_callback.h>
  <prometheus/registry.h>)  # not CLI11, whose globals every file would then compile: 4 s
set(expertd_headers_test ${expertd_headers_plain} <gmock/gmock.h> <gtest/gtest.h>)
if(EXPERTD_PRECOMPILE)
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/precompiled.cc CONTENT "// what the headers are compiled for")
  foreach(set plain grpc test)
    add_library(expertd_headers_${set} OBJECT ${PROJECT_BINARY_DIR}/precompiled.cc)
    target_link_libraries(expertd_headers_${set} PRIVATE expertd_options)
    target_precompile_headers(expertd_headers_${set} PRIVATE ${expertd_headers_${set}})
  endforeach()
  # The flags must be those of the targets that use them: libraries', tests'. gRPC brings -pthread to some of them.
  set_target_properties(expertd_headers_plain expertd_headers_grpc PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_compile_options(expertd_headers_grpc PRIVATE -pthread)
  target_compile_options(expertd_headers_test PRIVATE -pthread -O0)
  target_link_libraries(expertd_headers_test PRIVATE GTest::gmock)
endif()
function(expertd_precompile target set)
  if(EXPERTD_PRECOMPILE)
    target_precompile_headers(${target} REUSE_FROM expertd_headers_${set})
  endif()
endfunction()

# expertd_library(<name> [SHARED] SOURCES ... [PUBLIC libs...] [PRIVATE libs...] [PRECOMPILED set]): a library `name`, static unless
# it says so, alias expertd::<name without "expertd_">. PRECOMPILED: a set of expertd_precompile, else `plain`.
function(expertd_library name)
  cmake_parse_arguments(ARG "SHARED" "PRECOMPILED" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  set(type STATIC)
  if(ARG_SHARED)
    set(type SHARED)
  endif()
  add_library(${name} ${type} ${ARG_SOURCES})
  string(REGEX REPLACE "^expertd_" "" short ${name})
  add_library(expertd::${short} ALIAS ${name})
  # No <name>_EXPORTS: the objects of both types are the same, and a compiler cache knows them.
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON DEFINE_SYMBOL "")
  target_link_libraries(${name} PUBLIC ${ARG_PUBLIC} PRIVATE $<BUILD_INTERFACE:expertd_options> ${ARG_PRIVATE})
  target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
  if(NOT ARG_PRECOMPILED)
    set(ARG_PRECOMPILED plain)
  endif()
  expertd_precompile(${name} ${ARG_PRECOMPILED})
endfunction()

# expertd_test(<name> SOURCES ... LIBS ... [LABELS ...] [TIMEOUT s] [ARGS ...]): a GoogleTest program, registered with ctest.
# Labels with a meaning: `tsan` (threads of ours and no gRPC: runs under ThreadSanitizer too, target tsan_tests), `no-sanitizer`
# (measures memory or time, or starts processes so often that a sanitizer build cannot), `long` (only with tests/run.sh --long).
# A test's own files are compiled once and run for seconds, so they are not optimised: that would cost CI more than it saves. What
# they test comes from libraries that are.
add_custom_target(tsan_tests)
function(expertd_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LIBS;LABELS;ARGS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE expertd_options ${ARG_LIBS} GTest::gmock GTest::gtest_main)
  target_compile_options(${name} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-O0;-pthread>")
  expertd_precompile(${name} test)
  target_compile_definitions(${name} PRIVATE EXPERTD_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data"
                                             EXPERTD_BIN_DIR="${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  if("tsan" IN_LIST ARG_LABELS)
    add_dependencies(tsan_tests ${name})
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()

# expertd_bench(<name> SOURCES ... LIBS ...): a program under tests/bench; built, never run by ctest (timings are no assertions).
function(expertd_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE expertd_options ${ARG_LIBS})
endfunction()
