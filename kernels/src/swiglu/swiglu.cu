// SwiGLU: one thread a vector of elements of a row of `out`; a row of gate_up holds the gate's elements, then the other factor's.
#include "prelude.cuh"

template <class T> struct SwigluForward {
    Global<T> out;
    Global<const T> gate_up;
    u32 tokens, width;
    u64 out_stride, gate_up_stride;
};

template <class T> struct SwigluBackward {
    Global<T> d_gate_up;
    Global<const T> d_out, gate_up;
    u32 tokens, width;
    u64 d_gate_up_stride, d_out_stride, gate_up_stride;
};

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

// N elements a thread; N is 1 where rows are not aligned to vectors.
template <class T, int N> KERNEL(256) void swiglu_forward(const SwigluForward<T> args) {
    u32 vectors = args.width / N;
    u64 at = u64(block_index()) * 256 + thread_index();
    if (at >= u64(args.tokens) * vectors) return;
    u64 token = at / vectors;
    u32 column = u32(at % vectors) * N;
    Global<const T> row = args.gate_up + token * args.gate_up_stride + column;
    Vector<T, N> gate = load_streaming<N>(row), up = load_streaming<N>(row + args.width), out;
    UNROLL for (int i = 0; i < N; ++i) {
        float g = to_float(gate[i]);
        out[i] = from_float<T>(g * sigmoid(g) * to_float(up[i]));
    }
    store(args.out + token * args.out_stride + column, out);
}

template <class T, int N> KERNEL(256) void swiglu_backward(const SwigluBackward<T> args) {
    u32 vectors = args.width / N;
    u64 at = u64(block_index()) * 256 + thread_index();
    if (at >= u64(args.tokens) * vectors) return;
    u64 token = at / vectors;
    u32 column = u32(at % vectors) * N;
    Global<const T> row = args.gate_up + token * args.gate_up_stride + column;
    Vector<T, N> gate = load_streaming<N>(row), up = load_streaming<N>(row + args.width), d_gate, d_up;
    Vector<T, N> d_out = load_streaming<N>(args.d_out + token * args.d_out_stride + column);
    UNROLL for (int i = 0; i < N; ++i) {
        float g = to_float(gate[i]), d = to_float(d_out[i]), s = sigmoid(g);
        d_up[i] = from_float<T>(d * g * s);
        d_gate[i] = from_float<T>(d * to_float(up[i]) * (s * (1.0f + g * (1.0f - s))));
    }
    Global<T> d_row = args.d_gate_up + token * args.d_gate_up_stride + column;
    store(d_row, d_gate);
    store(d_row + args.width, d_up);
}

INSTANCE(swiglu_forward<float, 1>)
INSTANCE(swiglu_forward<float, 4>)
INSTANCE(swiglu_forward<bf16, 1>)
INSTANCE(swiglu_forward<bf16, 8>)
INSTANCE(swiglu_backward<float, 1>)
INSTANCE(swiglu_backward<float, 4>)
INSTANCE(swiglu_backward<bf16, 1>)
INSTANCE(swiglu_backward<bf16, 8>)
