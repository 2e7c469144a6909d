// Sixteen floats at a time, with sums in one fixed order on every machine.
#pragma once

#include <cstdint>

#include "isa.h"

#ifdef SAEKERN_X86
#include <xmmintrin.h>
#endif

namespace saekern {

constexpr int64_t kLanes = 16;

// Code that several clones share must be inlined into each: left alone, GCC keeps a large function apart, compiled for
// the baseline only (measured: half the speed).
#if defined(__GNUC__)
#define SAEKERN_INLINE inline __attribute__((always_inline))
#else
#define SAEKERN_INLINE inline
#endif

// One AVX-512 register, two of AVX2 or four of SSE/NEON: the compiler splits it. A loop over plain floats would keep a
// sum in a single order of additions, which cannot be vectorised; here the sixteen partial sums are written out, and
// their order does not depend on the instruction set.
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// The same in a row of any width: unaligned, and aliasing float. Reached by pointer: of a reference clang assumes that
// it is aligned as the vector type is, whatever the typedef says, and its code faults.
typedef float StoredLanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(alignof(float)), may_alias));

SAEKERN_INLINE StoredLanes* lanes(float* p) { return reinterpret_cast<StoredLanes*>(p); }
SAEKERN_INLINE const StoredLanes* lanes(const float* p) { return reinterpret_cast<const StoredLanes*>(p); }

SAEKERN_INLINE float sum(const Lanes& v) {
  float half[8], quarter[4];
  for (int j = 0; j < 8; ++j) half[j] = v[j] + v[j + 8];
  for (int j = 0; j < 4; ++j) quarter[j] = half[j] + half[j + 4];
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// Sixteen floats to memory that nobody reads soon, past the caches: a plain store would first fetch what it overwrites.
// p is 16-byte aligned. Other threads see the stores only after `streamed`.
SAEKERN_INLINE void stream(float* p, const Lanes& v) {
#ifdef SAEKERN_X86
  for (int j = 0; j < kLanes; j += 4) _mm_stream_ps(p + j, _mm_setr_ps(v[j], v[j + 1], v[j + 2], v[j + 3]));
#else
  *lanes(p) = v;
#endif
}

SAEKERN_INLINE void streamed() {
#ifdef SAEKERN_X86
  _mm_sfence();
#endif
}

SAEKERN_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

}  // namespace saekern
