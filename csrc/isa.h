// Portable speed without -march=native: one source, several machine levels, chosen when the program runs.
#pragma once

#define SAEKERN_RESTRICT __restrict__

// On a plain loop: GCC builds the function for baseline x86-64, AVX2 and AVX-512 and picks one at load time. The wider
// clones contract a*b+c to one rounding, so bits may differ between machines, never between thread counts on one
// machine. GCC 11 knows no x86-64 levels here, and its AVX2 clone no fused multiply-add. Clang and other platforms
// build the baseline only, and so does ThreadSanitizer, which is not ready yet when the choice is made.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__)
#if __GNUC__ >= 12
#define SAEKERN_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define SAEKERN_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#endif
#else
#define SAEKERN_CLONES
#endif

// Hand-written kernels name the instructions that they use; the caller asks `best_isa` first.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SAEKERN_X86 1
#define SAEKERN_AVX2 __attribute__((target("avx2,fma")))
#define SAEKERN_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define SAEKERN_AVX512BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#endif

namespace saekern {

enum class Isa { portable, avx2, avx512, avx512bf16 };

// The best level that this processor has.
Isa best_isa();
const char* isa_name(Isa isa);

}  // namespace saekern
