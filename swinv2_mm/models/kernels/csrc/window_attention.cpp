// Cosine attention inside the windows of a map on a CPU, forward and backward, one head of one window at a time.
//
// Lengths, products, bias, mask, soft-max and their gradients are computed while a block of rows of one head's logits is
// in the cache; kernels/cosine_attention.py makes a dozen passes over a few windows' logits. The token in each slot of a
// window is computed, too, so that the map is not copied into windows and back. All arithmetic is float32, for every type
// of map. The interface is plain C without torch: see kernels/cpp_attention.py.
//
// Threads take equal shares of the heads of all windows, in an order in which the bias of few heads is needed at a time.

#include "vectors.h"

namespace {

constexpr int LINE = 16;           // rows of logits are padded to whole cache lines, of so many floats
constexpr int ROWS = 64;           // queries whose logits exist at a time
constexpr int BIAS_FLOATS = 1 << 16;  // 256 KiB: what the bias of the heads that take turns may take, of one head at least
constexpr float MIN_NORM = 1e-6f;  // shorter vectors have no direction, as in cosine_attention.py

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

// C[i][n] = sum_c A[i][c] B[c][n] + more[i][n] for M rows and W vectors of columns; more, a bias of up to 16, may be
// null, and is added at the end: each addition to it would be rounded to its digits.
template <int D, int M, int W>
inline void block_times(const float* A, const float* B, int ld, const float* more, float* C) {
    V sum[M][W] = {};
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
        for (int v = 0; v < W; v++)
            put(C + i * ld + WIDTH * v, more ? sum[i][v] + get(more + i * ld + WIDTH * v) : sum[i][v]);
}

template <int D, int M>
void rows_times(const float* A, const float* B, int ld, const float* more, float* C) {
    constexpr int W = REGISTERS == 16 ? 2 : 4;  // 6 rows of sums, a row of B and a number of A fill the registers
    int n = 0;
    auto from = [&](int k) { return more ? more + k : nullptr; };
    for (; n + W * WIDTH <= ld; n += W * WIDTH) block_times<D, M, W>(A, B + n, ld, from(n), C + n);
    if (W > 2 && n + 2 * WIDTH <= ld) block_times<D, M, 2>(A, B + n, ld, from(n), C + n), n += 2 * WIDTH;
    for (; n < ld; n += WIDTH) block_times<D, M, 1>(A, B + n, ld, from(n), C + n);
}

// Logits: C (rows, ld) = A (rows, D) B (D, ld) + more, ld a multiple of LINE.
template <int D>
void wide_product(int rows, const float* A, const float* B, int ld, const float* more, float* C) {
    int i = 0;
    auto from = [&](int k) { return more ? more + k * ld : nullptr; };
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
    const float* bias;    // (3, nH, d), to be added to them, or null
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

// Rows of one head, of `apart` numbers from token to token, and a bias (or null) into slots; zeros where no token is.
template <class Type, int D>
void load(const Problem& p, const typename Type::T* from, int64_t apart, const float* bias, const int64_t* tokens,
          float* to) {
    float added[D] = {};
    if (bias) memcpy(added, bias, p.d * sizeof(float));
    for (int n = 0; n < p.N(); n++) {
        float* row = to + n * D;
        if (tokens[n] < 0) {
            memset(row, 0, D * sizeof(float));
            continue;
        }
        load_row<Type, D>(from + tokens[n] * apart, p.d, row);
        if (bias)
            for (int c = 0; c < D; c += WIDTH) put(row + c, get(row + c) + get(added + c));
    }
}

// Queries, keys and values of one head.
template <class Type, int D>
void load_head(const Problem& p, int64_t head, const int64_t* tokens, float* q, float* k, float* v) {
    float* into[] = {q, k, v};
    for (int i = 0; i < 3; i++) {
        int64_t first = (i * p.nH + head) * p.d;
        load<Type, D>(p, (const typename Type::T*)p.qkv + first, 3 * p.nH * p.d, p.bias ? p.bias + first : nullptr,
                      tokens, into[i]);
    }
}

// Add the first d of the sums of a row's vectors to those of a bias.
template <int D>
void add_sums(const Problem& p, const V* sums, float* to) {
    float numbers[D];
    for (int c = 0; c < D; c += WIDTH) put(numbers + c, sums[c / WIDTH]);
    for (int c = 0; c < p.d; c++) to[c] += numbers[c];
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

// From the gradient of x * by * length (in place of what normalise made) that of x, which is added to that of the bias,
// too; the sum of what lies along them.
template <class Type, int D>
float store_across(const Problem& p, const float* made, const float* by, float length, const float* grad,
                   const int64_t* tokens, typename Type::T* to, int64_t apart, float* bias_grad) {
    float total = 0;
    V sums[D / WIDTH] = {};
    for (int n = 0; n < p.N(); n++) {
        if (tokens[n] < 0) continue;
        V sum = {}, row[D / WIDTH];
        for (int c = 0; c < D; c += WIDTH) sum += get(made + n * D + c) * get(grad + n * D + c);
        float along = sum_of(sum) / length, back = along / length, factor = by[n] * length;
        total += along;
        for (int c = 0; c < D; c += WIDTH)
            row[c / WIDTH] = (get(grad + n * D + c) - get(made + n * D + c) * back) * factor;
        for (int c = 0; c < D; c += WIDTH) sums[c / WIDTH] += row[c / WIDTH];
        store_row<Type, D>(row, p.d, to + tokens[n] * apart);
    }
    add_sums<D>(p, sums, bias_grad);
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
void forward(const Problem& p, void* out, int64_t out_apart) {
    using T = typename Type::T;
    int N = p.N(), ld = p.ld();
    int64_t together = p.heads_in_turn();
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
            load_head<Type, D>(p, head, slots.tokens, q, k, v);
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
                    store_row<Type, D>(row, p.d, (T*)out + slots.tokens[r + i] * out_apart + head * p.d);
                }
            }
        });
    }
}

template <class Type, int D>
void backward(const Problem& p, const void* grad, void* qkv_grad, float* bias_grad, float* scale_grad,
              float* table_grad) {
    using T = typename Type::T;
    int N = p.N(), ld = p.ld();
    int64_t channels = p.nH * p.d, apart = 3 * channels, offsets = p.offsets(), together = p.heads_in_turn();
    // Of each thread, summed in the order of the threads.
    std::vector<float> scale_parts(p.threads * p.nH), table_parts(p.threads * p.nH * offsets);
    std::vector<float> bias_parts(p.threads * apart);
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
            load_head<Type, D>(p, head, slots.tokens, q, k, v);
            load<Type, D>(p, (const T*)grad + head * p.d, channels, nullptr, slots.tokens, o_grad);
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
            float* bias_to = &bias_parts[t * apart + head * p.d];
            scale_parts[t * p.nH + head] +=
                store_across<Type, D>(p, q, q_by, scale, q_grad, slots.tokens, to, apart, bias_to);
            store_across<Type, D>(p, k, k_by, 1.0f, k_grad, slots.tokens, to + channels, apart, bias_to + channels);
            V sums[D / WIDTH] = {};
            for (int n = 0; n < N; n++) {
                if (slots.tokens[n] < 0) continue;
                V row[D / WIDTH];
                for (int c = 0; c < D; c += WIDTH) sums[c / WIDTH] += row[c / WIDTH] = get(v_grad + n * D + c);
                store_row<Type, D>(row, p.d, to + 2 * channels + slots.tokens[n] * apart);
            }
            add_sums<D>(p, sums, bias_to + 2 * channels);
        });
        finish();
    }
    auto add_up = [&](const std::vector<float>& parts, int64_t count, float* to) {
        memset(to, 0, sizeof(float) * count);
        for (int t = 0; t < p.threads; t++)
            for (int64_t i = 0; i < count; i++) to[i] += parts[t * count + i];
    };
    add_up(scale_parts, p.nH, scale_grad);
    add_up(table_parts, p.nH * offsets, table_grad);
    if (bias_grad) add_up(bias_parts, apart, bias_grad);
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
// are at most 64 wide. The bias and its gradient may be null. The result of a token is out_apart numbers behind the last.
extern "C" {

void swinv2_attention_forward(int type, const void* qkv, const float* bias, const float* scale, const float* table,
                              void* out, int64_t out_apart, int64_t B, int64_t H, int64_t W, int64_t nH, int d, int Wh, int Ww,
                              int shift_h, int shift_w, int threads) {
    Problem p{qkv, bias, scale, table, B, H, W, nH, d, Wh, Ww, shift_h, shift_w, threads};
    chosen(type, d, [&](auto kind, auto width) { forward<decltype(kind), decltype(width)::value>(p, out, out_apart); });
}

void swinv2_attention_backward(int type, const void* qkv, const float* bias, const float* scale, const float* table,
                               const void* grad, void* qkv_grad, float* bias_grad, float* scale_grad,
                               float* table_grad, int64_t B, int64_t H, int64_t W, int64_t nH, int d, int Wh, int Ww,
                               int shift_h, int shift_w, int threads) {
    Problem p{qkv, bias, scale, table, B, H, W, nH, d, Wh, Ww, shift_h, shift_w, threads};
    chosen(type, d, [&](auto kind, auto width) {
        backward<decltype(kind), decltype(width)::value>(p, grad, qkv_grad, bias_grad, scale_grad, table_grad);
    });
}

}
