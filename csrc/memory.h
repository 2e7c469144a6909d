// Memory for large outputs. Fresh memory is paid for page by page.
#pragma once

#include <cstddef>

namespace saekern {

// Asks for 2 MiB pages under a large output that is about to be written for the first time: 50 MB are faulted in within
// 16 ms in 4 KiB pages, 3 ms in 2 MiB ones (Zen 5 virtual machine). A hint: does nothing where the system has no such
// pages, or for small outputs.
void prefer_huge_pages(void* data, size_t bytes);

// From this size on outputs are taken here. malloc gives blocks of 32 MiB and more back to the system at every free
// (and smaller ones sometimes), so that a gradient is faulted in anew each step.
constexpr size_t kLargeBlock = size_t{16} << 20;

// A block of at least `bytes`, a freed one where one fits. Contents are arbitrary. Throws std::bad_alloc.
void* take_block(size_t bytes);

// Back from take_block. The memory stays mapped for a later block, so long as all blocks, taken and freed, hold no more
// than was taken at one time before: this never raises the peak. (Marking it with MADV_FREE instead, for the system to
// take when it runs short, costs 0.27 ms for 32 MB: a fifth of the gradient that goes there.)
void free_block(void* block);

// Gives all freed blocks back to the system.
void release_blocks();

}  // namespace saekern
