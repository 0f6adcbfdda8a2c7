// Cosine attention inside windows on a CPU with AVX-512, forward and backward, one head of one window at a time.
//
// What swinv2_mm/models/cosine_attention.py computes in a dozen passes over a few windows' logits happens here while a
// block of rows of one head's logits is in the cache: lengths, products, bias, mask, soft-max and their gradients. All
// arithmetic is float32, whatever the type of the map. Plain C functions without torch: see models/native_attention.py.
//
// Threads take equal shares of the heads of all windows, those of one head in a row, so that its bias is laid out once.

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int D = 32;            // channels of a head
constexpr int ROWS = 64;         // queries whose logits exist at a time
constexpr float MIN_NORM = 1e-6f;  // shorter vectors have no direction, as in cosine_attention.py
const float INF = __builtin_inff();

// ---------------------------------------------------------------------------------------------- types of the map

struct Float32 {
    using T = float;
    static __m512 load(const T* p) { return _mm512_loadu_ps(p); }
    static void store(T* p, __m512 x) { _mm512_storeu_ps(p, x); }
};

struct Float16 {
    using T = uint16_t;
    static __m512 load(const T* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
    static void store(T* p, __m512 x) {
        _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
};

struct BFloat16 {
    using T = uint16_t;
    static __m512 load(const T* p) {
        __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    }
    static void store(T* p, __m512 x) {  // to nearest, ties to even
        __m512i bits = _mm512_castps_si512(x);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
        bits = _mm512_mask_mov_epi32(bits, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
        _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(bits));
    }
};

// ------------------------------------------------------------------------------------------------------ products

// C[i][n] = init[i][n] + sum_c A[i][c] B[c][n] for M rows and V vectors of columns; init may be null.
template <int M, int V>
void block_times(const float* A, const float* B, int ldb, const float* init, float* C, int ld) {
    __m512 sum[M][V];
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[i][v] = init ? _mm512_loadu_ps(init + i * ld + 16 * v) : _mm512_setzero_ps();
    for (int c = 0; c < D; c++) {
        __m512 b[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) b[v] = _mm512_loadu_ps(B + c * ldb + 16 * v);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) {
            __m512 a = _mm512_set1_ps(A[i * D + c]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sum[i][v] = _mm512_fmadd_ps(a, b[v], sum[i][v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) _mm512_storeu_ps(C + i * ld + 16 * v, sum[i][v]);
}

template <int M>
void rows_times(const float* A, const float* B, int ld, const float* init, float* C) {
    int n = 0;
    for (; n + 64 <= ld; n += 64) block_times<M, 4>(A, B + n, ld, init ? init + n : nullptr, C + n, ld);
    if (n + 32 <= ld) block_times<M, 2>(A, B + n, ld, init ? init + n : nullptr, C + n, ld), n += 32;
    if (n < ld) block_times<M, 1>(A, B + n, ld, init ? init + n : nullptr, C + n, ld);
}

// Logits: C (rows, ld) = init + A (rows, D) B (D, ld), ld a multiple of 16.
void wide_product(int rows, const float* A, const float* B, int ld, const float* init, float* C) {
    int i = 0;
    auto from = [&](int k) { return init ? init + k * ld : nullptr; };
    for (; i + 6 <= rows; i += 6) rows_times<6>(A + i * D, B, ld, from(i), C + i * ld);
    for (; i + 2 <= rows; i += 2) rows_times<2>(A + i * D, B, ld, from(i), C + i * ld);
    for (; i < rows; i++) rows_times<1>(A + i * D, B, ld, from(i), C + i * ld);
}

// C[i][:] (+)= sum_k A[i si + k sk] B[k][:] for M rows of D channels.
template <int M>
void block_sum(const float* A, int si, int sk, const float* B, int K, float* C, bool add) {
    __m512 sum[M][2];
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
        sum[i][0] = add ? _mm512_loadu_ps(C + i * D) : _mm512_setzero_ps();
        sum[i][1] = add ? _mm512_loadu_ps(C + i * D + 16) : _mm512_setzero_ps();
    }
    for (int k = 0; k < K; k++) {
        __m512 b0 = _mm512_loadu_ps(B + k * D), b1 = _mm512_loadu_ps(B + k * D + 16);
#pragma GCC unroll 12
        for (int i = 0; i < M; i++) {
            __m512 a = _mm512_set1_ps(A[i * si + k * sk]);
            sum[i][0] = _mm512_fmadd_ps(a, b0, sum[i][0]);
            sum[i][1] = _mm512_fmadd_ps(a, b1, sum[i][1]);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
        _mm512_storeu_ps(C + i * D, sum[i][0]);
        _mm512_storeu_ps(C + i * D + 16, sum[i][1]);
    }
}

// C (rows, D) (+)= A B with A[i][k] at i si + k sk, and B (K, D).
void narrow_product(int rows, const float* A, int si, int sk, const float* B, int K, float* C, bool add) {
    int i = 0;
    for (; i + 12 <= rows; i += 12) block_sum<12>(A + i * si, si, sk, B, K, C + i * D, add);
    for (; i + 4 <= rows; i += 4) block_sum<4>(A + i * si, si, sk, B, K, C + i * D, add);
    for (; i < rows; i++) block_sum<1>(A + i * si, si, sk, B, K, C + i * D, add);
}

// (rows, D) to (D, ld); the columns beyond are left as they are.
void transpose(const float* from, int rows, float* to, int ld) {
    for (int r = 0; r < rows; r += 16)
        for (int c = 0; c < D; c += 16) {
            __m512 a[16], b[16];
            for (int i = 0; i < 16; i++)
                a[i] = r + i < rows ? _mm512_loadu_ps(from + (r + i) * D + c) : _mm512_setzero_ps();
            for (int i = 0; i < 8; i++) {
                b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
                b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
            }
            auto pd = [](__m512 x) { return _mm512_castps_pd(x); };
            for (int i = 0; i < 4; i++) {
                a[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(b[4 * i]), pd(b[4 * i + 2])));
                a[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(b[4 * i]), pd(b[4 * i + 2])));
                a[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(b[4 * i + 1]), pd(b[4 * i + 3])));
                a[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(b[4 * i + 1]), pd(b[4 * i + 3])));
            }
            for (int i = 0; i < 4; i++) {  // column i of each group of four, in lanes
                __m512 x = _mm512_shuffle_f32x4(a[i], a[4 + i], 0x88), y = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0x88);
                __m512 z = _mm512_shuffle_f32x4(a[i], a[4 + i], 0xdd), w = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0xdd);
                _mm512_storeu_ps(to + (c + i) * ld + r, _mm512_shuffle_f32x4(x, y, 0x88));
                _mm512_storeu_ps(to + (c + 4 + i) * ld + r, _mm512_shuffle_f32x4(z, w, 0x88));
                _mm512_storeu_ps(to + (c + 8 + i) * ld + r, _mm512_shuffle_f32x4(x, y, 0xdd));
                _mm512_storeu_ps(to + (c + 12 + i) * ld + r, _mm512_shuffle_f32x4(z, w, 0xdd));
            }
        }
}

// ------------------------------------------------------------------------------------------------------ soft-max

// exp(x) of x <= 0 to one unit in the last place: 2^n times a polynomial (that of Cephes' expf). NaN stays NaN.
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);  // below it is 0; max gives the second of two where one is NaN
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

// Turn a row of logits into exp(logit - largest), and give one by their sum. Slots of other regions get 0.
float exponentials(float* row, int ld, const int32_t* regions, int32_t own) {
    __m512 largest = _mm512_set1_ps(-INF), sum = _mm512_setzero_ps();
    for (int n = 0; n < ld; n += 16) {
        __m512 x = _mm512_loadu_ps(row + n);
        if (regions) {
            __mmask16 other = _mm512_cmpneq_epi32_mask(_mm512_loadu_si512(regions + n), _mm512_set1_epi32(own));
            x = _mm512_mask_mov_ps(x, other, _mm512_set1_ps(-INF));
            _mm512_storeu_ps(row + n, x);
        }
        largest = _mm512_max_ps(largest, x);
    }
    largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (int n = 0; n < ld; n += 16) {
        __m512 x = exponential(_mm512_sub_ps(_mm512_loadu_ps(row + n), largest));
        _mm512_storeu_ps(row + n, x);
        sum = _mm512_add_ps(sum, x);
    }
    return 1.0f / _mm512_reduce_add_ps(sum);
}

// ------------------------------------------------------------------------------------------------------- problem

struct Problem {
    const void* qkv;      // (G, N, 3, nH, D)
    const float* scale;   // (nH)
    const float* table;   // (nH, 2 Wh - 1, 2 Ww - 1), the bias of each offset
    int64_t G, nH;
    int Wh, Ww;
    int64_t groups;              // of windows with one mask, in order, covering all
    const int64_t* stops;        // where each ends
    const int64_t* const* regions;  // (N) each, or null where nothing is masked
    int threads;

    int N() const { return Wh * Ww; }
    int ld() const { return (N() + 15) / 16 * 16; }
    const int64_t* regions_of(int64_t window) const {
        int64_t group = 0;
        while (window >= stops[group]) group++;
        return regions[group];
    }
};

// Memory of one thread, kept from call to call; from the start of a cache line, as all that is taken off it.
float* scratch(size_t floats) {
    thread_local std::vector<float> memory;
    if (memory.size() < floats + 16) memory.resize(floats + 16);
    return (float*)(((uintptr_t)memory.data() + 63) / 64 * 64);
}

// The bias of one head over pairs of slots, (N, ld); -inf in the columns beyond N.
void spread(const Problem& p, int64_t head, float* bias) {
    int N = p.N(), ld = p.ld(), cols = 2 * p.Ww - 1;
    const float* table = p.table + head * (2 * p.Wh - 1) * cols;
    for (int q = 0; q < N; q++) {
        for (int k = 0; k < p.Wh; k++) {
            const float* from = table + (q / p.Ww - k + p.Wh - 1) * cols + q % p.Ww + p.Ww - 1;
            for (int j = 0; j < p.Ww; j++) bias[q * ld + k * p.Ww + j] = from[-j];
        }
        for (int n = N; n < ld; n++) bias[q * ld + n] = -INF;
    }
}

// The gradient of the table from that of the spread bias.
void collect(const Problem& p, const float* bias, float* table) {
    int N = p.N(), ld = p.ld(), cols = 2 * p.Ww - 1;
    for (int q = 0; q < N; q++)
        for (int k = 0; k < p.Wh; k++) {
            float* to = table + (q / p.Ww - k + p.Wh - 1) * cols + q % p.Ww + p.Ww - 1;
            for (int j = 0; j < p.Ww; j++) to[-j] += bias[q * ld + k * p.Ww + j];
        }
}

// Where one of queries, keys and values (0, 1, 2) of a window's head begins; its N rows are 3 nH D apart.
int64_t part(const Problem& p, int64_t window, int which, int64_t head) {
    return ((window * p.N() * 3 + which) * p.nH + head) * D;
}

template <class Type>
void load(const typename Type::T* from, int64_t stride, int N, float* to) {
    for (int n = 0; n < N; n++)
        for (int c = 0; c < D; c += 16) _mm512_storeu_ps(to + n * D + c, Type::load(from + n * stride + c));
}

// Scale rows to a length, and give one by the lengths that they had; what is too short becomes zero.
void normalise(float* x, int N, float length, float* by) {
    for (int n = 0; n < N; n++) {
        __m512 a = _mm512_loadu_ps(x + n * D), b = _mm512_loadu_ps(x + n * D + 16);
        float norm = _mm512_reduce_add_ps(_mm512_fmadd_ps(a, a, _mm512_mul_ps(b, b)));
        norm = __builtin_sqrtf(norm);
        by[n] = norm > MIN_NORM ? 1.0f / norm : 0.0f;
        __m512 factor = _mm512_set1_ps(by[n] * length);
        _mm512_storeu_ps(x + n * D, _mm512_mul_ps(a, factor));
        _mm512_storeu_ps(x + n * D + 16, _mm512_mul_ps(b, factor));
    }
}

// From the gradient of x * by * length (in place of what normalise made) that of x; the sum of what lies along them.
template <class Type>
float store_across(const float* made, const float* by, float length, const float* grad, int N, typename Type::T* to,
                   int64_t stride) {
    float total = 0;
    for (int n = 0; n < N; n++) {
        __m512 a = _mm512_loadu_ps(made + n * D), b = _mm512_loadu_ps(made + n * D + 16);  // length * unit vector
        __m512 g = _mm512_loadu_ps(grad + n * D), h = _mm512_loadu_ps(grad + n * D + 16);
        float along = _mm512_reduce_add_ps(_mm512_fmadd_ps(a, g, _mm512_mul_ps(b, h))) / length;
        total += along;
        __m512 back = _mm512_set1_ps(along / length), factor = _mm512_set1_ps(by[n] * length);
        Type::store(to + n * stride, _mm512_mul_ps(_mm512_fnmadd_ps(a, back, g), factor));
        Type::store(to + n * stride + 16, _mm512_mul_ps(_mm512_fnmadd_ps(b, back, h), factor));
    }
    return total;
}

const int32_t* regions_in(const Problem& p, int64_t window, int32_t* into) {
    const int64_t* given = p.regions_of(window);
    if (!given) return nullptr;
    for (int n = 0; n < p.N(); n++) into[n] = (int32_t)given[n];
    for (int n = p.N(); n < p.ld(); n++) into[n] = -1;
    return into;
}

// Call body(first, last, thread) on equal shares of all heads of all windows; item = head * G + window.
template <class Body>
void shared_out(const Problem& p, Body body) {
#pragma omp parallel for num_threads(p.threads) schedule(static)
    for (int t = 0; t < p.threads; t++) {
        int64_t items = p.G * p.nH;
        body(items * t / p.threads, items * (t + 1) / p.threads, t);
    }
}

template <class Type>
void forward(const Problem& p, void* out) {
    using T = typename Type::T;
    const T* qkv = (const T*)p.qkv;
    int N = p.N(), ld = p.ld();
    int64_t stride = 3 * p.nH * D;
    shared_out(p, [&](int64_t first, int64_t last, int) {
        float* bias = scratch((size_t)N * ld + 4 * N * D + ld * D + (ROWS + 3) * ld);
        float *q = bias + N * ld, *k = q + N * D, *v = k + N * D, *o = v + N * D, *kt = o + N * D, *s = kt + ld * D;
        float* by = s + ROWS * ld;
        int32_t* regions = (int32_t*)(by + ld);
        int64_t laid_out = -1;
        for (int64_t item = first; item < last; item++) {
            int64_t head = item / p.G, window = item % p.G;
            if (head != laid_out) spread(p, laid_out = head, bias);
            load<Type>(qkv + part(p, window, 0, head), stride, N, q);
            load<Type>(qkv + part(p, window, 1, head), stride, N, k);
            load<Type>(qkv + part(p, window, 2, head), stride, N, v);
            normalise(q, N, p.scale[head], by);
            normalise(k, N, 1.0f, by);
            transpose(k, N, kt, ld);
            const int32_t* region = regions_in(p, window, regions);
            for (int r = 0; r < N; r += ROWS) {
                int rows = r + ROWS < N ? ROWS : N - r;
                wide_product(rows, q + r * D, kt, ld, bias + r * ld, s);
                for (int i = 0; i < rows; i++)
                    by[i] = exponentials(s + i * ld, ld, region, region ? region[r + i] : 0);
                narrow_product(rows, s, ld, 1, v, N, o, false);
                T* to = (T*)out + ((window * N + r) * p.nH + head) * D;
                for (int i = 0; i < rows; i++)
                    for (int c = 0; c < D; c += 16)
                        Type::store(to + i * p.nH * D + c,
                                    _mm512_mul_ps(_mm512_loadu_ps(o + i * D + c), _mm512_set1_ps(by[i])));
            }
        }
    });
}

template <class Type>
void backward(const Problem& p, const void* grad, void* qkv_grad, float* scale_grad, float* table_grad) {
    using T = typename Type::T;
    const T* qkv = (const T*)p.qkv;
    int N = p.N(), ld = p.ld();
    int64_t stride = 3 * p.nH * D, offsets = (2 * p.Wh - 1) * (2 * p.Ww - 1);
    // Of each thread, summed in the order of the threads.
    std::vector<float> scale_parts(p.threads * p.nH), table_parts(p.threads * p.nH * offsets);
    shared_out(p, [&](int64_t first, int64_t last, int thread) {
        float* bias = scratch(2 * (size_t)N * ld + 7 * N * D + 2 * ld * D + (2 * ROWS + 3) * ld);
        float *bias_grad = bias + N * ld, *q = bias_grad + N * ld, *k = q + N * D, *v = k + N * D, *o_grad = v + N * D;
        float *q_grad = o_grad + N * D, *k_grad = q_grad + N * D, *v_grad = k_grad + N * D;
        float *kt = v_grad + N * D, *vt = kt + ld * D, *probs = vt + ld * D, *s_grad = probs + ROWS * ld;
        float *q_by = s_grad + ROWS * ld, *k_by = q_by + ld;
        int32_t* regions = (int32_t*)(k_by + ld);
        int64_t laid_out = -1;
        auto finish = [&] {
            if (laid_out >= 0) collect(p, bias_grad, &table_parts[(thread * p.nH + laid_out) * offsets]);
        };
        for (int64_t item = first; item < last; item++) {
            int64_t head = item / p.G, window = item % p.G;
            if (head != laid_out) {
                finish();
                spread(p, laid_out = head, bias);
                memset(bias_grad, 0, sizeof(float) * N * ld);
            }
            float scale = p.scale[head];
            load<Type>(qkv + part(p, window, 0, head), stride, N, q);
            load<Type>(qkv + part(p, window, 1, head), stride, N, k);
            load<Type>(qkv + part(p, window, 2, head), stride, N, v);
            load<Type>((const T*)grad + (window * N * p.nH + head) * D, p.nH * D, N, o_grad);
            normalise(q, N, scale, q_by);
            normalise(k, N, 1.0f, k_by);
            transpose(k, N, kt, ld);
            transpose(v, N, vt, ld);
            const int32_t* region = regions_in(p, window, regions);
            for (int r = 0; r < N; r += ROWS) {
                int rows = r + ROWS < N ? ROWS : N - r;
                wide_product(rows, q + r * D, kt, ld, bias + r * ld, probs);
                wide_product(rows, o_grad + r * D, vt, ld, nullptr, s_grad);
                for (int i = 0; i < rows; i++) {
                    float *row = probs + i * ld, *row_grad = s_grad + i * ld, *sum = bias_grad + (r + i) * ld;
                    __m512 by = _mm512_set1_ps(exponentials(row, ld, region, region ? region[r + i] : 0));
                    __m512 dot = _mm512_setzero_ps();
                    for (int n = 0; n < ld; n += 16) {
                        __m512 x = _mm512_mul_ps(_mm512_loadu_ps(row + n), by);
                        _mm512_storeu_ps(row + n, x);
                        dot = _mm512_fmadd_ps(x, _mm512_loadu_ps(row_grad + n), dot);
                    }
                    dot = _mm512_set1_ps(_mm512_reduce_add_ps(dot));
                    for (int n = 0; n < ld; n += 16) {
                        __m512 x = _mm512_sub_ps(_mm512_loadu_ps(row_grad + n), dot);
                        x = _mm512_mul_ps(x, _mm512_loadu_ps(row + n));
                        _mm512_storeu_ps(row_grad + n, x);
                        _mm512_storeu_ps(sum + n, _mm512_add_ps(_mm512_loadu_ps(sum + n), x));
                    }
                }
                narrow_product(rows, s_grad, ld, 1, k, N, q_grad + r * D, false);
                narrow_product(N, s_grad, 1, ld, q + r * D, rows, k_grad, r > 0);
                narrow_product(N, probs, 1, ld, o_grad + r * D, rows, v_grad, r > 0);
            }
            auto to = [&](int which) { return (T*)qkv_grad + part(p, window, which, head); };
            scale_parts[thread * p.nH + head] += store_across<Type>(q, q_by, scale, q_grad, N, to(0), stride);
            store_across<Type>(k, k_by, 1.0f, k_grad, N, to(1), stride);
            for (int n = 0; n < N; n++)
                for (int c = 0; c < D; c += 16) Type::store(to(2) + n * stride + c, _mm512_loadu_ps(v_grad + n * D + c));
        }
        finish();
    });
    memset(scale_grad, 0, sizeof(float) * p.nH);
    memset(table_grad, 0, sizeof(float) * p.nH * offsets);
    for (int t = 0; t < p.threads; t++) {
        for (int64_t i = 0; i < p.nH; i++) scale_grad[i] += scale_parts[t * p.nH + i];
        for (int64_t i = 0; i < p.nH * offsets; i++) table_grad[i] += table_parts[t * p.nH * offsets + i];
    }
}

}  // namespace

// Types: 0 float32, 1 bfloat16, 2 float16. Maps are of that type, everything else is float32; all are contiguous.
extern "C" {

void swinv2_attention_forward(int type, const void* qkv, const float* scale, const float* table, void* out, int64_t G,
                              int64_t nH, int Wh, int Ww, int64_t groups, const int64_t* stops,
                              const int64_t* const* regions, int threads) {
    Problem p{qkv, scale, table, G, nH, Wh, Ww, groups, stops, regions, threads};
    type == 0 ? forward<Float32>(p, out) : type == 1 ? forward<BFloat16>(p, out) : forward<Float16>(p, out);
}

void swinv2_attention_backward(int type, const void* qkv, const float* scale, const float* table, const void* grad,
                               void* qkv_grad, float* scale_grad, float* table_grad, int64_t G, int64_t nH, int Wh,
                               int Ww, int64_t groups, const int64_t* stops, const int64_t* const* regions,
                               int threads) {
    Problem p{qkv, scale, table, G, nH, Wh, Ww, groups, stops, regions, threads};
    auto run = type == 0 ? backward<Float32> : type == 1 ? backward<BFloat16> : backward<Float16>;
    run(p, grad, qkv_grad, scale_grad, table_grad);
}

}
