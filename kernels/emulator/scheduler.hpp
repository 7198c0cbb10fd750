// Running the threads of a group.
#pragma once

#include "machine.hpp"

namespace emulator {

// Runs one group to its end, or until the launch has failed. `copies` has a queue for each thread.
void run_group(Worker &worker, Group &group, CopyQueue *copies);

// A sentence on what each thread of the group waits for.
std::string describe_waiting(const Group &group);

} // namespace emulator
