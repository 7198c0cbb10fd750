// A softmax whose logits come a few at a time: the state of a row, and how states are joined.
#pragma once
#include "math.cuh"
#include "threads.cuh"
#include "types.cuh"

namespace log_prob {

/// What a state without entries has as greatest logit.
constexpr float LOWEST = -3.402823466e38f;

/// What is known of a row's softmax after some of its entries. Products that are added to are written as fma throughout: left to the
/// compiler, one tile shape might round them and another not.
struct State {
    float greatest = LOWEST;
    /// Of e^(logit - greatest).
    float sum = 0.0f;
    /// Of e^(logit - greatest) (logit - greatest).
    float weighted = 0.0f;
};

/// The state with its sums relative to a greatest logit that is no smaller. A state without entries has none to scale.
DEVICE State relative_to(const State &state, float greatest) {
    if (state.sum == 0.0f && state.weighted == 0.0f) return State{greatest, 0.0f, 0.0f};
    const float shift = state.greatest - greatest, scale = exp(shift);
    return State{greatest, multiply(scale, state.sum), multiply(scale, fma(shift, state.sum, state.weighted))};
}

DEVICE State join(const State &a, const State &b) {
    const float greatest = max(a.greatest, b.greatest);
    const State x = relative_to(a, greatest), y = relative_to(b, greatest);
    return State{greatest, x.sum + y.sum, x.weighted + y.weighted};
}

DEVICE float quad_sum(float value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
}

/// Takes the logits of a row that a quad of lanes holds, COUNT each, into the row's state, which the lane `owner` of each quad keeps. Of the
/// logits those with column < vocabulary are valid: column + 8 j, and the next.
template <int COUNT> DEVICE void absorb(State &state, u32 owner, const float (&logits)[COUNT], u32 column, u32 vocabulary) {
    float greatest = LOWEST;
    UNROLL
    for (u32 j = 0; j < u32(COUNT); j++) {
        if (column + 8 * (j / 2) + j % 2 < vocabulary) greatest = max(greatest, logits[j]);
    }
    greatest = max(greatest, shuffle_xor(greatest, 1));
    greatest = max(greatest, shuffle_xor(greatest, 2));
    greatest = max(greatest, shuffle(state.greatest, (lane() & ~3u) | owner));
    float sum = 0.0f, weighted = 0.0f;
    UNROLL
    for (u32 j = 0; j < u32(COUNT); j++) {
        if (column + 8 * (j / 2) + j % 2 < vocabulary) {
            const float below = logits[j] - greatest, e = exp(below);
            sum += e;
            weighted = fma(e, below, weighted);
        }
    }
    sum = quad_sum(sum);
    weighted = quad_sum(weighted);
    if (lane() % 4 == owner) {
        const State before = relative_to(state, greatest);
        state = State{greatest, before.sum + sum, before.weighted + weighted};
    }
}

}  // namespace log_prob
