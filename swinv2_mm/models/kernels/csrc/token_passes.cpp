// The work of a block between its products, in one pass over memory each: bias and GELU; norm, stochastic depth and
// residual; and their gradients.
//
// torch's operations read and write a map once for each of these steps. All arithmetic is float32, for every type of
// tensor.

#include "vectors.h"

namespace {

constexpr float SQRT_HALF = 0.70710678118654752f, INV_SQRT_2PI = 0.39894228040143268f;

struct Normal {
    V distribution;  // P(X <= x) of a standard normal X
    V density;
};

// By erf's approximation 7.1.26 of Abramowitz and Stegun, which torch's vectors use, too: to 1e-7.
inline Normal normal(V x) {
    V size = bits<V>(bits<VU>(x) & 0x7fffffff), z = size * SQRT_HALF;
    V t = 1.0f / (z * 0.3275911f + 1.0f), gauss = exponential(z * z * -1.0f);
    V p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    V beyond = p * t * gauss * 0.5f;  // what lies beyond |x|
    return {x < 0.0f ? beyond : 1.0f - beyond, gauss * INV_SQRT_2PI};
}

template <class Type>
struct Rows {
    using T = typename Type::T;
    const T* hidden;
    const T* bias;  // or null
    int64_t C;

    // Call body(index, x) on each vector of hidden + bias of some rows, whole rows at a time; what is left of a row is
    // computed in a copy, which `index` then lies in: body(...) gives what is to be stored.
    template <class Body>
    void each(int64_t first, int64_t last, Body body) const {
        for (int64_t i = first; i < last; i++) {
            const T* row = hidden + i * C;
            int64_t c = 0;
            for (; c + WIDTH <= C; c += WIDTH) {
                V x = Type::load(row + c);
                body(i * C + c, WIDTH, bias ? x + Type::load(bias + c) : x);
            }
            if (c < C) {
                T values[WIDTH] = {}, biases[WIDTH] = {};
                memcpy(values, row + c, (C - c) * sizeof(T));
                if (bias) memcpy(biases, bias + c, (C - c) * sizeof(T));
                body(i * C + c, (int)(C - c), Type::load(values) + Type::load(biases));
            }
        }
    }
};

template <class Type>
inline V load_some(const typename Type::T* from, int count) {
    if (count == WIDTH) return Type::load(from);
    typename Type::T values[WIDTH] = {};
    memcpy(values, from, count * sizeof *from);
    return Type::load(values);
}

template <class Type>
inline void store_some(typename Type::T* to, int count, V x) {
    if (count == WIDTH) return Type::store(to, x);
    typename Type::T values[WIDTH];
    Type::store(values, x);
    memcpy(to, values, count * sizeof *to);
}

template <class Type>
void gelu(const void* hidden, const void* bias, void* out, int64_t M, int64_t C, int threads) {
    using T = typename Type::T;
    Rows<Type> rows{(const T*)hidden, (const T*)bias, C};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; t++)
        rows.each(M * t / threads, M * (t + 1) / threads, [&](int64_t at, int count, V x) {
            store_some<Type>((T*)out + at, count, x * normal(x).distribution);
        });
}

template <class Type>
void gelu_backward(const void* hidden, const void* bias, void* grad, void* out, int64_t M, int64_t C, int threads) {
    using T = typename Type::T;
    Rows<Type> rows{(const T*)hidden, (const T*)bias, C};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; t++)
        rows.each(M * t / threads, M * (t + 1) / threads, [&](int64_t at, int count, V x) {
            Normal n = normal(x);
            store_some<Type>((T*)out + at, count, x * n.distribution);
            V slope = n.distribution + x * n.density;
            store_some<Type>((T*)grad + at, count, load_some<Type>((T*)grad + at, count) * slope);
        });
}

// One row of C numbers, read with zeros behind into whole vectors.
template <class Type>
inline void read_row(const typename Type::T* from, int64_t C, float* to) {
    int64_t c = 0;
    for (; c + WIDTH <= C; c += WIDTH) put(to + c, Type::load(from + c));
    if (c < C) put(to + c, load_some<Type>(from + c, (int)(C - c)));
}

// What the passes over rows share. Scales are one per sample, of M / samples rows each; null for 1.
struct Norm {
    const float *weight, *bias;  // (C)
    const float* scales;         // (samples)
    int64_t M, C, samples;
    int threads;

    int64_t padded() const { return (C + WIDTH - 1) / WIDTH * WIDTH; }
    float scale(int64_t row) const { return scales ? scales[row / (M / samples)] : 1.0f; }
};

template <class Type>
void residual_norm(const Norm& p, const void* x, const void* branch, float eps, void* out, float* means, float* factors) {
    using T = typename Type::T;
    int64_t C = p.C, padded = p.padded();
#pragma omp parallel for num_threads(p.threads) schedule(static)
    for (int t = 0; t < p.threads; t++) {
        std::vector<float> memory(3 * padded);
        float *row = memory.data(), *weight = row + padded, *bias = weight + padded;
        memcpy(weight, p.weight, C * sizeof(float));
        memcpy(bias, p.bias, C * sizeof(float));
        for (int64_t i = p.M * t / p.threads; i < p.M * (t + 1) / p.threads; i++) {
            read_row<Type>((const T*)branch + i * C, C, row);
            V sum = {}, squares = {};
            for (int64_t c = 0; c < C; c += WIDTH) sum += get(row + c);
            float mean = sum_of(sum) / C;
            for (int64_t c = 0; c < C; c += WIDTH) {
                V apart = get(row + c) - mean;
                put(row + c, apart);
                if (c + WIDTH > C) {
                    memset(row + C, 0, (padded - C) * sizeof(float));
                    apart = get(row + c);
                }
                squares += apart * apart;
            }
            float factor = 1.0f / __builtin_sqrtf(sum_of(squares) / C + eps), scale = p.scale(i);
            for (int64_t c = 0; c < C; c += WIDTH) {
                int count = (int)(c + WIDTH <= C ? WIDTH : C - c);
                V y = (get(row + c) * factor * get(weight + c) + get(bias + c)) * scale;
                store_some<Type>((T*)out + i * C + c, count, load_some<Type>((const T*)x + i * C + c, count) + y);
            }
            if (means) means[i] = mean, factors[i] = factor;
        }
    }
}

template <class Type>
void residual_norm_backward(const Norm& p, const void* grad, const void* branch, const float* means,
                            const float* factors, void* branch_grad, float* weight_grad, float* bias_grad) {
    using T = typename Type::T;
    int64_t C = p.C, padded = p.padded();
    std::vector<float> sums(2 * padded * p.threads);  // of each thread, summed in the order of the threads
#pragma omp parallel for num_threads(p.threads) schedule(static)
    for (int t = 0; t < p.threads; t++) {
        std::vector<float> memory(5 * padded);
        float *unit = memory.data(), *back = unit + padded, *weight = back + padded;
        float *weight_sum = weight + padded, *bias_sum = weight_sum + padded;
        memcpy(weight, p.weight, C * sizeof(float));
        for (int64_t i = p.M * t / p.threads; i < p.M * (t + 1) / p.threads; i++) {
            read_row<Type>((const T*)branch + i * C, C, unit);
            read_row<Type>((const T*)grad + i * C, C, back);
            float mean = means[i], factor = factors[i], scale = p.scale(i);
            V along = {}, total = {};
            for (int64_t c = 0; c < C; c += WIDTH) {  // behind the row the weight is 0
                V u = (get(unit + c) - mean) * factor, g = get(back + c) * scale, w = g * get(weight + c);
                put(weight_sum + c, get(weight_sum + c) + g * u);
                put(bias_sum + c, get(bias_sum + c) + g);
                put(unit + c, u);
                put(back + c, w);
                total += w;
                along += w * u;
            }
            float level = sum_of(total) / C, part = sum_of(along) / C;
            for (int64_t c = 0; c < C; c += WIDTH) {
                V g = (get(back + c) - level - get(unit + c) * part) * factor;
                store_some<Type>((T*)branch_grad + i * C + c, (int)(c + WIDTH <= C ? WIDTH : C - c), g);
            }
        }
        memcpy(&sums[2 * padded * t], weight_sum, 2 * padded * sizeof(float));
    }
    for (int64_t c = 0; c < C; c++) {
        weight_grad[c] = bias_grad[c] = 0;
        for (int t = 0; t < p.threads; t++) {
            weight_grad[c] += sums[2 * padded * t + c];
            bias_grad[c] += sums[2 * padded * t + padded + c];
        }
    }
}

}  // namespace

// Types: 0 float32, 1 bfloat16, 2 float16, of all maps; all tensors are contiguous.
extern "C" {

// out = x + scale * norm(branch) of (M, C), a scale for each sample (null: 1), weight and bias float32; the means and
// one by the standard deviations of the rows are given back, (M), if they are not null.
void swinv2_residual_norm(int type, const void* x, const void* branch, const float* weight, const float* bias,
                          const float* scales, void* out, float* means, float* factors, int64_t M, int64_t C,
                          int64_t samples, float eps, int threads) {
    Norm p{weight, bias, scales, M, C, samples, threads};
    auto run = type == 0 ? residual_norm<Float32> : type == 1 ? residual_norm<BFloat16> : residual_norm<Float16>;
    run(p, x, branch, eps, out, means, factors);
}

// The gradients of branch, weight and bias from that of out, which is that of x, too.
void swinv2_residual_norm_backward(int type, const void* grad, const void* branch, const float* weight,
                                   const float* scales, const float* means, const float* factors, void* branch_grad,
                                   float* weight_grad, float* bias_grad, int64_t M, int64_t C, int64_t samples,
                                   int threads) {
    Norm p{weight, nullptr, scales, M, C, samples, threads};
    auto run = type == 0   ? residual_norm_backward<Float32>
               : type == 1 ? residual_norm_backward<BFloat16>
                           : residual_norm_backward<Float16>;
    run(p, grad, branch, means, factors, branch_grad, weight_grad, bias_grad);
}

// out = gelu(hidden + bias) of (M, C); bias may be null, and out may be hidden.
void swinv2_gelu(int type, const void* hidden, const void* bias, void* out, int64_t M, int64_t C, int threads) {
    auto run = type == 0 ? gelu<Float32> : type == 1 ? gelu<BFloat16> : gelu<Float16>;
    run(hidden, bias, out, M, C, threads);
}

// The same, and grad, that of its result, becomes that of hidden.
void swinv2_gelu_backward(int type, const void* hidden, const void* bias, void* grad, void* out, int64_t M, int64_t C,
                          int threads) {
    auto run = type == 0 ? gelu_backward<Float32> : type == 1 ? gelu_backward<BFloat16> : gelu_backward<Float16>;
    run(hidden, bias, grad, out, M, C, threads);
}

}
