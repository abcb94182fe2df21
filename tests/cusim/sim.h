// What the two halves of the stand-in know of each other: `fibers.cpp` runs kernels, `driver.cpp` is the driver.
#pragma once
#include "cusim.h"

namespace cusim {
const Entry* find(const char* name);
// Runs a grid to its end; false where it did not come to it.
bool launch(const Entry* kernel, Index grid, Index size, size_t bytes, void** parameters);
// Says what a kernel did wrong; the first sentence counts.
__attribute__((format(printf, 1, 2))) void fault(const char* format, ...);
bool is_faulty();
// Whether an address is one of the device's; whether all bytes from there on are allocated.
bool is_device(const void* address);
bool is_allocated(const void* address, size_t bytes);
}  // namespace cusim
