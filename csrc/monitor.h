// How a long job says how far it is, and how it is stopped.
#pragma once

#include <cstdint>

namespace saekern {

class Monitor {
 public:
  virtual ~Monitor() = default;

  // Called on the thread that called the job, several times in 0.2 s; cheap when called more often. May throw: the
  // job then ends, and what it was to write is unspecified.
  virtual void report(const char* phase, int64_t done, int64_t total) = 0;
};

}  // namespace saekern
