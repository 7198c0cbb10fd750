// SwiGLU: threads that share a row of `out` take its vectors of elements in turn; a row of gate_up holds the gate's elements, then the other factor's.
#include "prelude.cuh"
#include "rows.cuh"

template <class T> struct SwigluForward {
    Global<T> out;
    Global<const T> gate_up;
    u32 tokens, width, threads_per_row;
    u64 out_stride, gate_up_stride;
};

template <class T> struct SwigluBackward {
    Global<T> d_gate_up;
    Global<const T> d_out, gate_up;
    u32 tokens, width, threads_per_row;
    u64 d_gate_up_stride, d_out_stride, gate_up_stride;
};

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

// N elements a thread; N is 1 where rows are not aligned to vectors.
template <class T, int N> KERNEL(256) void swiglu_forward(const SwigluForward<T> args) {
    begin_grid();
    const RowShare share = row_share(args.threads_per_row);
    if (share.row >= args.tokens) return;
    Global<const T> row = args.gate_up + share.row * args.gate_up_stride;
    Global<T> out_row = args.out + share.row * args.out_stride;
    for (u64 column = share.part * N; column < args.width; column += share.step * N) {
        const Vector<T, N> gate = load_streaming<N>(row + column), up = load_streaming<N>(row + args.width + column);
        Vector<T, N> out;
        UNROLL
        for (int i = 0; i < N; i++) {
            const float g = to_float(gate[i]);
            out[i] = from_float<T>(g * sigmoid(g) * to_float(up[i]));
        }
        store(out_row + column, out);
    }
}

template <class T, int N> KERNEL(256) void swiglu_backward(const SwigluBackward<T> args) {
    const RowShare share = row_share(args.threads_per_row);
    if (share.row >= args.tokens) return;
    Global<const T> row = args.gate_up + share.row * args.gate_up_stride, d_out_row = args.d_out + share.row * args.d_out_stride;
    Global<T> d_row = args.d_gate_up + share.row * args.d_gate_up_stride;
    for (u64 column = share.part * N; column < args.width; column += share.step * N) {
        const Vector<T, N> gate = load_streaming<N>(row + column), up = load_streaming<N>(row + args.width + column);
        const Vector<T, N> d_out = load_streaming<N>(d_out_row + column);
        Vector<T, N> d_gate, d_up;
        UNROLL
        for (int i = 0; i < N; i++) {
            const float g = to_float(gate[i]), d = to_float(d_out[i]), s = sigmoid(g);
            d_up[i] = from_float<T>(d * g * s);
            d_gate[i] = from_float<T>(d * to_float(up[i]) * (s * (1.0f + g * (1.0f - s))));
        }
        store(d_row + column, d_gate);
        store(d_row + args.width + column, d_up);
    }
}

INSTANCE(swiglu_forward<float, 1>)
INSTANCE(swiglu_forward<float, 4>)
INSTANCE(swiglu_forward<bf16, 1>)
INSTANCE(swiglu_forward<bf16, 8>)
INSTANCE(swiglu_backward<float, 1>)
INSTANCE(swiglu_backward<float, 4>)
INSTANCE(swiglu_backward<bf16, 1>)
INSTANCE(swiglu_backward<bf16, 8>)
