#include "memory.h"

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace saekern {

void prefer_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096, kLarge = 8 << 20;
  if (bytes < kLarge) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kPage - 1) & ~(kPage - 1);
  const uintptr_t last = (begin + bytes) & ~(kPage - 1);
  (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

#if defined(__linux__)

namespace {

struct Block {
  void* data;
  size_t bytes;
};

class Blocks {
 public:
  void* take(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    Block block{nullptr, 0};
    // The newest that fits without waste: the likeliest to be in a cache still.
    for (auto old = freed_.rbegin(); old != freed_.rend() && !block.data; ++old) {
      if (old->bytes < bytes || old->bytes > bytes + bytes / 8) continue;
      block = *old;
      freed_.erase(std::next(old).base());
      freed_bytes_ -= block.bytes;
    }
    if (!block.data) {
      void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (data == MAP_FAILED) throw std::bad_alloc();
      prefer_huge_pages(data, bytes);
      block = {data, bytes};
    }
    taken_.emplace(block.data, block.bytes);
    taken_bytes_ += block.bytes;
    peak_ = std::max(peak_, taken_bytes_);
    while (!freed_.empty() && taken_bytes_ + freed_bytes_ > peak_) unmap_oldest();
    return block.data;
  }

  void free(void* data) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto block = taken_.find(data);
    freed_.push_back({block->first, block->second});
    taken_bytes_ -= block->second;
    freed_bytes_ += block->second;
    taken_.erase(block);
  }

  void release() {
    std::lock_guard<std::mutex> lock(mutex_);
    while (!freed_.empty()) unmap_oldest();
    peak_ = taken_bytes_;
  }

 private:
  void unmap_oldest() {
    munmap(freed_.front().data, freed_.front().bytes);
    freed_bytes_ -= freed_.front().bytes;
    freed_.erase(freed_.begin());
  }

  std::mutex mutex_;
  std::unordered_map<void*, size_t> taken_;
  std::vector<Block> freed_;  // the oldest first
  size_t taken_bytes_ = 0, freed_bytes_ = 0, peak_ = 0;
};

Blocks& blocks() {
  static Blocks* all = new Blocks;  // never destroyed: tensors may outlive every static
  return *all;
}

}  // namespace

void* take_block(size_t bytes) {
  constexpr size_t kUnit = 2 << 20;
  return blocks().take((std::max<size_t>(bytes, 1) + kUnit - 1) / kUnit * kUnit);
}

void free_block(void* block) { blocks().free(block); }

void release_blocks() { blocks().release(); }

#else

void* take_block(size_t bytes) { return ::operator new(bytes); }

void free_block(void* block) { ::operator delete(block); }

void release_blocks() {}

#endif

}  // namespace saekern
