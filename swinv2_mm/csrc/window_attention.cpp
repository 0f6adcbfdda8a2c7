// Cosine attention inside the windows of a map on a CPU, forward and backward, one head of one window at a time.
//
// What swinv2_mm/models/cosine_attention.py computes in a dozen passes over a few windows' logits happens here while a
// block of rows of one head's logits is in the cache: lengths, products, bias, mask, soft-max and their gradients. Which
// token of the map sits in which slot of a window is computed, too, so that nothing is copied into windows and back. All
// arithmetic is float32, whatever the type of the map. Plain C functions without torch: see models/native_attention.py.
//
// The source knows no instruction set. It is compiled once for each that the compiler knows (AVX-512, AVX2 with FMA, Arm's
// NEON), in the compiler's own vectors of WIDTH numbers; only the conversions from and to float16 name instructions.
//
// Threads take equal shares of the heads of all windows, in an order in which the bias of few heads is needed at a time.

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int WIDTH = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int WIDTH = 4, REGISTERS = 32;
#else
constexpr int WIDTH = 4, REGISTERS = 16;
#endif

typedef float V __attribute__((vector_size(4 * WIDTH)));
typedef int32_t VI __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t VU __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t VH __attribute__((vector_size(2 * WIDTH)));

constexpr int LINE = 16;           // rows of logits are padded to whole cache lines, of so many floats
constexpr int ROWS = 64;           // queries whose logits exist at a time
constexpr int BIAS_FLOATS = 1 << 16;  // 256 KiB: what the bias of the heads that take turns may take, of one head at least
constexpr float MIN_NORM = 1e-6f;  // shorter vectors have no direction, as in cosine_attention.py
const float INF = __builtin_inff();

// ------------------------------------------------------------------------------------------------------- vectors

template <class T>
inline T read(const void* from) {
    T x;
    memcpy(&x, from, sizeof x);
    return x;
}

inline V get(const float* p) { return read<V>(p); }
inline void put(float* p, V x) { memcpy(p, &x, sizeof x); }
inline V all(float x) { return x - V{}; }  // not V{} + x, which is 0 where x is -0
template <class To, class From>
inline To bits(From x) { return read<To>(&x); }
inline V larger(V x, V y) { return x > y ? x : y; }  // y where x is NaN

// Lane i of the result is lane from(i) of a and b in a row.
template <class Index, size_t... I>
inline V shuffled(V a, V b, Index from, std::index_sequence<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, from(I)...);
#else
    return __builtin_shuffle(a, b, VI{from(I)...});
#endif
}

using Lanes = std::make_index_sequence<WIDTH>;

template <int apart, class Combine>
inline float folded(V x, Combine combine) {
    if constexpr (apart == 0) return x[0];
    else return folded<apart / 2>(combine(x, shuffled(x, x, [](int i) constexpr { return i ^ apart; }, Lanes{})), combine);
}

inline float sum_of(V x) { return folded<WIDTH / 2>(x, [](V a, V b) { return a + b; }); }
inline float largest_of(V x) { return folded<WIDTH / 2>(x, larger); }

// ---------------------------------------------------------------------------------------------- types of the map

struct Float32 {
    using T = float;
    static V load(const T* p) { return get(p); }
    static void store(T* p, V x) { put(p, x); }
};

struct BFloat16 {
    using T = uint16_t;
    static V load(const T* p) { return bits<V>(__builtin_convertvector(read<VH>(p), VU) << 16); }
    static void store(T* p, V x) {  // to nearest, ties to even
        VU u = bits<VU>(x);
        u = (u + ((u >> 16) & 1) + 0x7fff) >> 16;
        VH half = __builtin_convertvector(x == x ? u : u * 0 + 0x7fc0, VH);
        memcpy(p, &half, sizeof half);
    }
};

struct Float16 {
    using T = uint16_t;
#if defined(__AVX512F__)
    static V load(const T* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
    static void store(T* p, V x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__AVX2__) && defined(__F16C__)
    static V load(const T* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
    static void store(T* p, V x) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__aarch64__)
    static V load(const T* p) { return bits<V>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))); }
    static void store(T* p, V x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(bits<float32x4_t>(x)))); }
#else
    static V load(const T* p) {
        VU h = __builtin_convertvector(read<VH>(p), VU), sign = (h & 0x8000) << 16;
        // As if the exponent had float32's range; 2^112 makes up for the other bias, for subnormal numbers, too.
        V x = bits<V>((h & 0x7fff) << 13) * bits<V>(VU{} + 0x77800000);
        VU u = bits<VU>(x);
        return bits<V>(((h & 0x7c00) == 0x7c00 ? u | 0x7f800000 : u) | sign);
    }
    static void store(T* p, V x) {  // to nearest, ties to even
        VU u = bits<VU>(x), sign = (u >> 16) & 0x8000;
        u &= 0x7fffffff;
        V y = bits<V>(u);
        VU normal = (u + ((u >> 13) & 1) + 0xfff - 0x38000000) >> 13;
        VU small = bits<VU>(y + 0.5f) - 0x3f000000;  // the addition rounds to multiples of 2^-24
        VU half = u < 0x38800000 ? small : u < 0x477ff000 ? normal : VU{} + 0x7c00;
        half = (y == y ? half : VU{} + 0x7e00) | sign;
        VH narrow = __builtin_convertvector(half, VH);
        memcpy(p, &narrow, sizeof narrow);
    }
#endif
};

// Rows of d numbers to rows of D >= d, with zeros behind.
template <class Type, int D>
inline void load_row(const typename Type::T* from, int d, float* to) {
    if (d == D) {
#pragma GCC unroll 4
        for (int c = 0; c < D; c += WIDTH) put(to + c, Type::load(from + c));
        return;
    }
    typename Type::T padded[D] = {};
    memcpy(padded, from, d * sizeof *from);
    for (int c = 0; c < D; c += WIDTH) put(to + c, Type::load(padded + c));
}

template <class Type, int D>
inline void store_row(const V* from, int d, typename Type::T* to) {
    if (d == D) {
#pragma GCC unroll 4
        for (int c = 0; c < D; c += WIDTH) Type::store(to + c, from[c / WIDTH]);
        return;
    }
    typename Type::T padded[D];
    for (int c = 0; c < D; c += WIDTH) Type::store(padded + c, from[c / WIDTH]);
    memcpy(to, padded, d * sizeof *to);
}

// ------------------------------------------------------------------------------------------------------ products

// C[i][n] = init[i][n] + sum_c A[i][c] B[c][n] for M rows and W vectors of columns; init may be null.
template <int D, int M, int W>
inline void block_times(const float* A, const float* B, int ld, const float* init, float* C) {
    V sum[M][W];
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int v = 0; v < W; v++) sum[i][v] = init ? get(init + i * ld + WIDTH * v) : V{};
    for (int c = 0; c < D; c++) {
        V b[W];
#pragma GCC unroll 4
        for (int v = 0; v < W; v++) b[v] = get(B + c * ld + WIDTH * v);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) {
            V a = all(A[i * D + c]);
#pragma GCC unroll 4
            for (int v = 0; v < W; v++) sum[i][v] += a * b[v];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int v = 0; v < W; v++) put(C + i * ld + WIDTH * v, sum[i][v]);
}

template <int D, int M>
void rows_times(const float* A, const float* B, int ld, const float* init, float* C) {
    constexpr int W = REGISTERS == 16 ? 2 : 4;  // 6 rows of sums, a row of B and a number of A fill the registers
    int n = 0;
    auto from = [&](int k) { return init ? init + k : nullptr; };
    for (; n + W * WIDTH <= ld; n += W * WIDTH) block_times<D, M, W>(A, B + n, ld, from(n), C + n);
    if (W > 2 && n + 2 * WIDTH <= ld) block_times<D, M, 2>(A, B + n, ld, from(n), C + n), n += 2 * WIDTH;
    for (; n < ld; n += WIDTH) block_times<D, M, 1>(A, B + n, ld, from(n), C + n);
}

// Logits: C (rows, ld) = init + A (rows, D) B (D, ld), ld a multiple of LINE.
template <int D>
void wide_product(int rows, const float* A, const float* B, int ld, const float* init, float* C) {
    int i = 0;
    auto from = [&](int k) { return init ? init + k * ld : nullptr; };
    for (; i + 6 <= rows; i += 6) rows_times<D, 6>(A + i * D, B, ld, from(i), C + i * ld);
    for (; i + 2 <= rows; i += 2) rows_times<D, 2>(A + i * D, B, ld, from(i), C + i * ld);
    for (; i < rows; i++) rows_times<D, 1>(A + i * D, B, ld, from(i), C + i * ld);
}

// C[i][:] (+)= sum_k A[i si + k sk] B[k][:] for M rows and W vectors of the D channels.
template <int D, int M, int W>
inline void block_sum(const float* A, int si, int sk, const float* B, int K, float* C, bool add) {
    V sum[M][W];
#pragma GCC unroll 12
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int v = 0; v < W; v++) sum[i][v] = add ? get(C + i * D + WIDTH * v) : V{};
    for (int k = 0; k < K; k++) {
        V b[W];
#pragma GCC unroll 4
        for (int v = 0; v < W; v++) b[v] = get(B + k * D + WIDTH * v);
#pragma GCC unroll 12
        for (int i = 0; i < M; i++) {
            V a = all(A[i * si + k * sk]);
#pragma GCC unroll 4
            for (int v = 0; v < W; v++) sum[i][v] += a * b[v];
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int v = 0; v < W; v++) put(C + i * D + WIDTH * v, sum[i][v]);
}

// C (rows, D) (+)= A B with A[i][k] at i si + k sk, and B (K, D).
template <int D>
void narrow_product(int rows, const float* A, int si, int sk, const float* B, int K, float* C, bool add) {
    constexpr int vectors = D / WIDTH, W = vectors % 4 == 0 && WIDTH == 4 ? 4 : vectors % 2 == 0 ? 2 : vectors;
    constexpr int M = REGISTERS == 16 ? 12 / W : 24 / W < 12 ? 24 / W : 12;
    for (int c = 0; c < D; c += W * WIDTH) {
        int i = 0;
        for (; i + M <= rows; i += M) block_sum<D, M, W>(A + i * si, si, sk, B + c, K, C + i * D + c, add);
        for (; i + 2 <= rows; i += 2) block_sum<D, 2, W>(A + i * si, si, sk, B + c, K, C + i * D + c, add);
        for (; i < rows; i++) block_sum<D, 1, W>(A + i * si, si, sk, B + c, K, C + i * D + c, add);
    }
}

// (rows, D) to (D, ld), with zeros in the columns beyond: numbers that are not finite would spread from there.
template <int D>
void transpose(const float* from, int rows, float* to, int ld) {
    for (int r = 0; r < ld; r += WIDTH)
        for (int c = 0; c < D; c += WIDTH) {
            V a[WIDTH], b[WIDTH];
            for (int i = 0; i < WIDTH; i++) a[i] = r + i < rows ? get(from + (r + i) * D + c) : V{};
#pragma GCC unroll 4
            for (int apart = WIDTH; apart > 1; apart /= 2) {  // merged lane by lane, as often as it takes
#pragma GCC unroll 8
                for (int i = 0; i < WIDTH / 2; i++) {
                    V x = a[i], y = a[i + WIDTH / 2];
                    b[2 * i] = shuffled(x, y, [](int l) constexpr { return l / 2 + l % 2 * WIDTH; }, Lanes{});
                    b[2 * i + 1] = shuffled(
                        x, y, [](int l) constexpr { return l / 2 + l % 2 * WIDTH + WIDTH / 2; }, Lanes{});
                }
#pragma GCC unroll 16
                for (int i = 0; i < WIDTH; i++) a[i] = b[i];
            }
            for (int i = 0; i < WIDTH; i++) put(to + (c + i) * ld + r, a[i]);
        }
}

// ------------------------------------------------------------------------------------------------------ soft-max

// exp(x) of x <= 0 to one unit in the last place: 2^n times a polynomial (that of Cephes' expf). NaN stays NaN; what
// would be no normal number is 0.
inline V exponential(V x) {
    const float shift = 12582912.0f;                  // 1.5 * 2^23: adding it rounds to whole numbers
    V n = (x * 1.44269504f + shift) - shift;
    V r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    p = bits<V>(bits<VI>(p) + (__builtin_convertvector(n, VI) << 23));
    return x < -87.0f ? V{} : x == x ? p : x;
}

// Turn a row of logits into exp(logit - largest), and give one by their sum. Slots of other regions get 0.
inline float exponentials(float* row, int ld, const int32_t* regions, int32_t own) {
    V largest = all(-INF), sum = {};
    for (int n = 0; n < ld; n += WIDTH) {
        V x = get(row + n);
        if (regions) {
            x = read<VI>(regions + n) == own ? x : all(-INF);
            put(row + n, x);
        }
        largest = larger(x, largest);
    }
    largest = all(largest_of(largest));
    for (int n = 0; n < ld; n += WIDTH) {
        V x = exponential(get(row + n) - largest);
        put(row + n, x);
        sum += x;
    }
    return 1.0f / sum_of(sum);
}

// ------------------------------------------------------------------------------------------------------- problem

struct Problem {
    const void* qkv;      // (B, H, W, 3, nH, d)
    const float* scale;   // (nH)
    const float* table;   // (nH, 2 Wh - 1, 2 Ww - 1), the bias of each offset
    int64_t B, H, W, nH;
    int d;
    int Wh, Ww;           // of a window
    int shift_h, shift_w;
    int threads;

    int N() const { return Wh * Ww; }
    int ld() const { return (N() + LINE - 1) / LINE * LINE; }
    int64_t rows() const { return (H + Wh - 1) / Wh; }
    int64_t cols() const { return (W + Ww - 1) / Ww; }
    int64_t windows() const { return B * rows() * cols(); }
    int64_t offsets() const { return (int64_t)(2 * Wh - 1) * (2 * Ww - 1); }
    int64_t heads_in_turn() const {
        int64_t count = BIAS_FLOATS / ((int64_t)N() * ld());
        return count < 1 ? 1 : count < nH ? count : nH;
    }
};

// The slots of a window: their tokens in the map, and which of them may attend to each other.
struct Slots {
    int64_t* tokens;   // (N), -1 where there is none
    int32_t* regions;  // (ld), those of one region attend to each other
    bool masked;       // whether there are several regions

    // As window.py has it: rows that the roll brought together are of two regions, and padding is of none of them.
    void find(const Problem& p, int64_t window) {
        int64_t nh = p.rows(), nw = p.cols(), image = window / (nh * nw), top = window / nw % nh * p.Wh;
        int64_t left = window % nw * p.Ww;
        for (int i = 0, n = 0; i < p.Wh; i++) {
            int64_t row = top + i + p.shift_h, row_wraps = row >= nh * p.Wh;
            row -= row_wraps ? nh * p.Wh : 0;
            for (int j = 0; j < p.Ww; j++, n++) {
                int64_t col = left + j + p.shift_w, col_wraps = col >= nw * p.Ww;
                col -= col_wraps ? nw * p.Ww : 0;
                bool real = row < p.H && col < p.W;
                tokens[n] = real ? (image * p.H + row) * p.W + col : -1;
                regions[n] = real ? (int32_t)(2 * row_wraps + col_wraps) : 4;
            }
        }
        masked = false;
        for (int n = 1; n < p.N(); n++) masked |= regions[n] != regions[0];
        for (int n = p.N(); n < p.ld(); n++) regions[n] = -1;
    }
};

// Memory of one thread, kept from call to call; each piece starts with a cache line.
class Scratch {
  public:
    explicit Scratch(size_t bytes) {
        thread_local std::vector<char> memory;
        if (memory.size() < bytes + 64) memory.resize(bytes + 64);
        next = (char*)(((uintptr_t)memory.data() + 63) / 64 * 64);
    }
    template <class T = float>
    T* take(size_t count) {
        T* found = (T*)next;
        next += (count * sizeof(T) + 63) / 64 * 64;
        return found;
    }

  private:
    char* next;
};

// The bias of one head over pairs of slots, (N, ld); -inf in the columns beyond N.
void spread(const Problem& p, int64_t head, float* bias) {
    int N = p.N(), ld = p.ld(), cols = 2 * p.Ww - 1;
    const float* table = p.table + head * p.offsets();
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

// Rows of one head, of `apart` numbers from token to token, into slots; zeros where there is no token.
template <class Type, int D>
void load(const Problem& p, const typename Type::T* from, int64_t apart, const int64_t* tokens, float* to) {
    for (int n = 0; n < p.N(); n++)
        if (tokens[n] >= 0) load_row<Type, D>(from + tokens[n] * apart, p.d, to + n * D);
        else memset(to + n * D, 0, D * sizeof(float));
}

// Scale rows to a length, and give one by the lengths that they had; what is too short becomes zero.
template <int D>
void normalise(float* x, int N, float length, float* by) {
    for (int n = 0; n < N; n++) {
        V square = {};
        for (int c = 0; c < D; c += WIDTH) square += get(x + n * D + c) * get(x + n * D + c);
        float norm = __builtin_sqrtf(sum_of(square));
        by[n] = norm > MIN_NORM ? 1.0f / norm : norm <= MIN_NORM ? 0.0f : norm;  // NaN stays NaN
        for (int c = 0; c < D; c += WIDTH) put(x + n * D + c, get(x + n * D + c) * (by[n] * length));
    }
}

// From the gradient of x * by * length (in place of what normalise made) that of x; the sum of what lies along them.
template <class Type, int D>
float store_across(const Problem& p, const float* made, const float* by, float length, const float* grad,
                   const int64_t* tokens, typename Type::T* to, int64_t apart) {
    float total = 0;
    for (int n = 0; n < p.N(); n++) {
        if (tokens[n] < 0) continue;
        V sum = {}, row[D / WIDTH];
        for (int c = 0; c < D; c += WIDTH) sum += get(made + n * D + c) * get(grad + n * D + c);
        float along = sum_of(sum) / length, back = along / length, factor = by[n] * length;
        total += along;
        for (int c = 0; c < D; c += WIDTH)
            row[c / WIDTH] = (get(grad + n * D + c) - get(made + n * D + c) * back) * factor;
        store_row<Type, D>(row, p.d, to + tokens[n] * apart);
    }
    return total;
}

// The heads of all windows in an order, cut into equal shares: for each few heads all windows, for each window them.
template <class Visit>
void share(const Problem& p, int thread, Visit visit) {
    int64_t together = p.heads_in_turn(), G = p.windows(), items = G * p.nH;
    for (int64_t item = items * thread / p.threads; item < items * (thread + 1) / p.threads; item++) {
        int64_t first = item / (together * G) * together, heads = first + together < p.nH ? together : p.nH - first;
        int64_t rest = item - first * G;
        visit(rest / heads, first, (int)(rest % heads));  // window, first of the heads, which of them
    }
}

template <class Type, int D>
void forward(const Problem& p, void* out) {
    using T = typename Type::T;
    const T* qkv = (const T*)p.qkv;
    int N = p.N(), ld = p.ld();
    int64_t channels = p.nH * p.d, apart = 3 * channels, together = p.heads_in_turn();
#pragma omp parallel for num_threads(p.threads) schedule(static)
    for (int t = 0; t < p.threads; t++) {
        Scratch scratch(4 * ((size_t)together * N * ld + 4 * N * D + (size_t)ld * D + (ROWS + 2) * ld + 2 * N) + 1024);
        float *biases = scratch.take((size_t)together * N * ld), *q = scratch.take(N * D), *k = scratch.take(N * D);
        float *v = scratch.take(N * D), *o = scratch.take(ROWS * D < N * D ? ROWS * D : N * D);
        float *kt = scratch.take((size_t)ld * D), *s = scratch.take((size_t)ROWS * ld), *by = scratch.take(ld);
        Slots slots{scratch.take<int64_t>(N), scratch.take<int32_t>(ld), false};
        int64_t laid_out = -1, found = -1;
        share(p, t, [&](int64_t window, int64_t first, int which) {
            if (laid_out != first) {
                laid_out = first;
                for (int64_t h = 0; h < together && first + h < p.nH; h++) spread(p, first + h, biases + h * N * ld);
            }
            if (found != window) slots.find(p, found = window);
            int64_t head = first + which;
            const T* from = qkv + head * p.d;
            load<Type, D>(p, from, apart, slots.tokens, q);
            load<Type, D>(p, from + channels, apart, slots.tokens, k);
            load<Type, D>(p, from + 2 * channels, apart, slots.tokens, v);
            normalise<D>(q, N, p.scale[head], by);
            normalise<D>(k, N, 1.0f, by);
            transpose<D>(k, N, kt, ld);
            const int32_t* regions = slots.masked ? slots.regions : nullptr;
            for (int r = 0; r < N; r += ROWS) {
                int rows = r + ROWS < N ? ROWS : N - r;
                wide_product<D>(rows, q + r * D, kt, ld, biases + ((int64_t)which * N + r) * ld, s);
                for (int i = 0; i < rows; i++)
                    by[i] = exponentials(s + i * ld, ld, regions, slots.regions[r + i]);
                narrow_product<D>(rows, s, ld, 1, v, N, o, false);
                for (int i = 0; i < rows; i++) {
                    if (slots.tokens[r + i] < 0) continue;
                    V row[D / WIDTH];
                    for (int c = 0; c < D; c += WIDTH) row[c / WIDTH] = get(o + i * D + c) * by[i];
                    store_row<Type, D>(row, p.d, (T*)out + slots.tokens[r + i] * channels + head * p.d);
                }
            }
        });
    }
}

template <class Type, int D>
void backward(const Problem& p, const void* grad, void* qkv_grad, float* scale_grad, float* table_grad) {
    using T = typename Type::T;
    const T* qkv = (const T*)p.qkv;
    int N = p.N(), ld = p.ld();
    int64_t channels = p.nH * p.d, apart = 3 * channels, offsets = p.offsets(), together = p.heads_in_turn();
    // Of each thread, summed in the order of the threads.
    std::vector<float> scale_parts(p.threads * p.nH), table_parts(p.threads * p.nH * offsets);
#pragma omp parallel for num_threads(p.threads) schedule(static)
    for (int t = 0; t < p.threads; t++) {
        size_t biases_size = (size_t)together * N * ld;
        Scratch scratch(4 * (2 * biases_size + 7 * N * D + 2 * (size_t)ld * D + (2 * ROWS + 3) * ld + 2 * N) + 2048);
        float *biases = scratch.take(biases_size), *bias_grads = scratch.take(biases_size), *q = scratch.take(N * D);
        float *k = scratch.take(N * D), *v = scratch.take(N * D), *o_grad = scratch.take(N * D);
        float *q_grad = scratch.take(N * D), *k_grad = scratch.take(N * D), *v_grad = scratch.take(N * D);
        float *kt = scratch.take((size_t)ld * D), *vt = scratch.take((size_t)ld * D);
        float *probs = scratch.take((size_t)ROWS * ld), *s_grad = scratch.take((size_t)ROWS * ld);
        float *q_by = scratch.take(ld), *k_by = scratch.take(ld);
        Slots slots{scratch.take<int64_t>(N), scratch.take<int32_t>(ld), false};
        int64_t laid_out = -1, found = -1;
        auto finish = [&] {
            for (int64_t h = 0; laid_out >= 0 && h < together && laid_out + h < p.nH; h++)
                collect(p, bias_grads + h * N * ld, &table_parts[(t * p.nH + laid_out + h) * offsets]);
        };
        share(p, t, [&](int64_t window, int64_t first, int which) {
            if (laid_out != first) {
                finish();
                laid_out = first;
                for (int64_t h = 0; h < together && first + h < p.nH; h++) spread(p, first + h, biases + h * N * ld);
                memset(bias_grads, 0, sizeof(float) * biases_size);
            }
            if (found != window) slots.find(p, found = window);
            int64_t head = first + which;
            float scale = p.scale[head];
            const float* bias = biases + (int64_t)which * N * ld;
            float* bias_grad = bias_grads + (int64_t)which * N * ld;
            const T* from = qkv + head * p.d;
            load<Type, D>(p, from, apart, slots.tokens, q);
            load<Type, D>(p, from + channels, apart, slots.tokens, k);
            load<Type, D>(p, from + 2 * channels, apart, slots.tokens, v);
            load<Type, D>(p, (const T*)grad + head * p.d, channels, slots.tokens, o_grad);
            normalise<D>(q, N, scale, q_by);
            normalise<D>(k, N, 1.0f, k_by);
            transpose<D>(k, N, kt, ld);
            transpose<D>(v, N, vt, ld);
            const int32_t* regions = slots.masked ? slots.regions : nullptr;
            for (int r = 0; r < N; r += ROWS) {
                int rows = r + ROWS < N ? ROWS : N - r;
                wide_product<D>(rows, q + r * D, kt, ld, bias + r * ld, probs);
                wide_product<D>(rows, o_grad + r * D, vt, ld, nullptr, s_grad);
                for (int i = 0; i < rows; i++) {
                    float *row = probs + i * ld, *row_grad = s_grad + i * ld, *sum = bias_grad + (r + i) * ld;
                    V by = all(exponentials(row, ld, regions, slots.regions[r + i])), dots = {};
                    for (int n = 0; n < ld; n += WIDTH) {
                        V x = get(row + n) * by;
                        put(row + n, x);
                        dots += x * get(row_grad + n);
                    }
                    V dot = all(sum_of(dots));
                    for (int n = 0; n < ld; n += WIDTH) {
                        V x = (get(row_grad + n) - dot) * get(row + n);
                        put(row_grad + n, x);
                        put(sum + n, get(sum + n) + x);
                    }
                }
                narrow_product<D>(rows, s_grad, ld, 1, k, N, q_grad + r * D, false);
                narrow_product<D>(N, s_grad, 1, ld, q + r * D, rows, k_grad, r > 0);
                narrow_product<D>(N, probs, 1, ld, o_grad + r * D, rows, v_grad, r > 0);
            }
            T* to = (T*)qkv_grad + head * p.d;
            scale_parts[t * p.nH + head] += store_across<Type, D>(p, q, q_by, scale, q_grad, slots.tokens, to, apart);
            store_across<Type, D>(p, k, k_by, 1.0f, k_grad, slots.tokens, to + channels, apart);
            for (int n = 0; n < N; n++) {
                if (slots.tokens[n] < 0) continue;
                V row[D / WIDTH];
                for (int c = 0; c < D; c += WIDTH) row[c / WIDTH] = get(v_grad + n * D + c);
                store_row<Type, D>(row, p.d, to + 2 * channels + slots.tokens[n] * apart);
            }
        });
        finish();
    }
    memset(scale_grad, 0, sizeof(float) * p.nH);
    memset(table_grad, 0, sizeof(float) * p.nH * offsets);
    for (int t = 0; t < p.threads; t++) {
        for (int64_t i = 0; i < p.nH; i++) scale_grad[i] += scale_parts[t * p.nH + i];
        for (int64_t i = 0; i < p.nH * offsets; i++) table_grad[i] += table_parts[t * p.nH * offsets + i];
    }
}

// Run a template for the type of a map, and for the width of a head, rounded up to what is compiled.
template <class Run>
void chosen(int type, int d, Run run) {
    auto typed = [&](auto type) {
        if (d <= 16) run(type, std::integral_constant<int, 16>{});
        else if (d <= 32) run(type, std::integral_constant<int, 32>{});
        else if (d <= 48) run(type, std::integral_constant<int, 48>{});
        else run(type, std::integral_constant<int, 64>{});
    };
    type == 0 ? typed(Float32{}) : type == 1 ? typed(BFloat16{}) : typed(Float16{});
}

}  // namespace

// Types: 0 float32, 1 bfloat16, 2 float16. Maps are of that type, everything else is float32; all are contiguous. Heads
// are at most 64 wide.
extern "C" {

void swinv2_attention_forward(int type, const void* qkv, const float* scale, const float* table, void* out, int64_t B,
                              int64_t H, int64_t W, int64_t nH, int d, int Wh, int Ww, int shift_h, int shift_w,
                              int threads) {
    Problem p{qkv, scale, table, B, H, W, nH, d, Wh, Ww, shift_h, shift_w, threads};
    chosen(type, d, [&](auto kind, auto width) { forward<decltype(kind), decltype(width)::value>(p, out); });
}

void swinv2_attention_backward(int type, const void* qkv, const float* scale, const float* table, const void* grad,
                               void* qkv_grad, float* scale_grad, float* table_grad, int64_t B, int64_t H, int64_t W,
                               int64_t nH, int d, int Wh, int Ww, int shift_h, int shift_w, int threads) {
    Problem p{qkv, scale, table, B, H, W, nH, d, Wh, Ww, shift_h, shift_w, threads};
    chosen(type, d, [&](auto kind, auto width) {
        backward<decltype(kind), decltype(width)::value>(p, grad, qkv_grad, scale_grad, table_grad);
    });
}

}
