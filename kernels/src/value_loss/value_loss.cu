// The critic's clipped squared error: a thread a token at a time. Its losses are summed in float64: a row of sums a block, added up by
// `reduce_partials`.
#include "prelude.cuh"

struct ValueInputs {
    Global<const float> values, old_values, returns, weights;
    u32 tokens;
    // Infinite where there is none.
    float clip;
};

struct ValueLossForward {
    // A row a block: the sums of weight * loss, and of tokens clipped.
    Global<double> partials;
    ValueInputs inputs;
};

struct ValueLossBackward {
    Global<float> d_values;
    ValueInputs inputs;
};

// One token's loss, its derivative by the value, and whether the clip held it.
struct ValueToken {
    float loss, slope;
    bool clipped;
};

DEVICE ValueToken value_token_of(const ValueInputs &inputs, u32 t) {
    ValueToken token;
    const float value = inputs.values[t], old_value = inputs.old_values[t], target = inputs.returns[t];
    const float low = old_value - inputs.clip, high = old_value + inputs.clip;
    // Written with comparisons that a NaN passes.
    const float held = value < low ? low : value > high ? high : value;
    const float error = value - target, held_error = held - target;
    const float plain = 0.5f * error * error, clipped = 0.5f * held_error * held_error;
    const bool inside = value >= low && value <= high;
    // The part of the gradient that passes the maximum.
    const float passes = plain > clipped || inside ? 1.0f : plain == clipped ? 0.5f : 0.0f;
    token.loss = plain < clipped ? clipped : plain;
    token.slope = error * passes;
    token.clipped = clipped > plain;
    return token;
}

KERNEL(256) void value_loss_forward(const ValueLossForward args) {
    constexpr int SUMS = 2;
    double sums[SUMS] = {};
    for (u32 t = block_index() * 256 + thread_index(); t < args.inputs.tokens; t += block_count() * 256) {
        const ValueToken token = value_token_of(args.inputs, t);
        const double weight = args.inputs.weights[t], loss = token.loss;
        sums[0] += weight * loss;
        sums[1] += token.clipped ? 1.0 : 0.0;
    }
    UNROLL
    for (int i = 0; i < SUMS; i++) {
        const double sum = block_sum(sums[i], shared<double>(0));
        if (thread_index() == 0) args.partials[block_index() * SUMS + i] = sum;
    }
}

KERNEL(256) void value_loss_backward(const ValueLossBackward args) {
    const u32 t = block_index() * 256 + thread_index();
    if (t >= args.inputs.tokens) return;
    const float weight = args.inputs.weights[t];
    args.d_values[t] = value_token_of(args.inputs, t).slope * weight;
}

INSTANCE(value_loss_forward)
INSTANCE(value_loss_backward)
