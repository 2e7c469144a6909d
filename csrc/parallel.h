// One pool of threads for every kernel.
#pragma once

#include <cstdint>
#include <functional>

namespace saekern {

// Calls body(i, worker) once for each i in [0, items), on at most `threads` threads of which the caller is one
// (worker 0); worker < threads. Which thread runs which i is not fixed, so a result must not depend on it: kernels
// write disjoint outputs, or partial results by i that are then combined in order. Not reentrant from inside body.
// An exception thrown by body stops the loop and is rethrown here.
void parallel_for(int64_t items, int threads, const std::function<void(int64_t, int)>& body);

}  // namespace saekern
