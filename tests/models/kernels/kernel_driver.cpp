// Calls one of the functions of swinv2_mm/models/kernels/csrc from a program of its own, for processors that are not at hand: numbers
// come from one file and go to another. See test_other_processors.py.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" {
void swinv2_attention_forward(int, const void*, const float*, const float*, const float*, void*, int64_t, int64_t, int64_t,
                              int64_t, int64_t, int, int, int, int, int, int);
void swinv2_attention_backward(int, const void*, const float*, const float*, const float*, const void*, void*, float*,
                               float*, float*, int64_t, int64_t, int64_t, int64_t, int, int, int, int, int, int);
void swinv2_gelu_backward(int, const void*, const void*, void*, void*, int64_t, int64_t, int);
void swinv2_residual_norm(int, const void*, const void*, const float*, const float*, const float*, void*, float*, float*,
                          int64_t, int64_t, int64_t, float, int);
void swinv2_residual_norm_backward(int, const void*, const void*, const float*, const float*, const float*, const float*,
                                   void*, float*, float*, int64_t, int64_t, int64_t, int);
}

namespace {

FILE *from, *to;

template <class T>
std::vector<T> take(size_t count) {
    std::vector<T> x(count);
    if (fread(x.data(), sizeof(T), count, from) != count) exit(3);
    return x;
}

template <class T>
void give(const std::vector<T>& x) {
    if (fwrite(x.data(), sizeof(T), x.size(), to) != x.size()) exit(4);
}

// Everything in the type T of a map, 0 float32, 1 bfloat16, 2 float16.
template <class T>
void run(int type, const std::vector<int64_t>& n) {
    int64_t B = n[1], H = n[2], W = n[3], nH = n[4], d = n[5], Wh = n[6], Ww = n[7], C = nH * d, M = B * H * W;
    auto qkv = take<T>(3 * M * C), grad = take<T>(M * C);
    auto bias = take<float>(3 * C), scale = take<float>(nH), table = take<float>(nH * (2 * Wh - 1) * (2 * Ww - 1));
    std::vector<T> out(M * C), qkv_grad(3 * M * C), active(M * C), sum(M * C), branch_grad(M * C);
    std::vector<float> bias_grad(3 * C), scale_grad(nH), table_grad(table.size()), means(M), factors(M);
    int sh = (int)n[8], sw = (int)n[9];
    swinv2_attention_forward(type, qkv.data(), bias.data(), scale.data(), table.data(), out.data(), C, B, H, W, nH, (int)d,
                             (int)Wh, (int)Ww, sh, sw, 1);
    swinv2_attention_backward(type, qkv.data(), bias.data(), scale.data(), table.data(), grad.data(), qkv_grad.data(),
                              bias_grad.data(), scale_grad.data(), table_grad.data(), B, H, W, nH, (int)d, (int)Wh,
                              (int)Ww, sh, sw, 1);
    std::vector<T> hidden_grad = grad;
    swinv2_gelu_backward(type, out.data(), nullptr, hidden_grad.data(), active.data(), M, C, 1);
    // The norm's weight and bias are the first and the last of the other bias.
    swinv2_residual_norm(type, out.data(), grad.data(), bias.data(), bias.data() + 2 * C, nullptr, sum.data(),
                         means.data(), factors.data(), M, C, B, 1e-5f, 1);
    std::vector<float> weight_grad(C), norm_bias_grad(C);
    swinv2_residual_norm_backward(type, out.data(), grad.data(), bias.data(), nullptr, means.data(), factors.data(),
                                  branch_grad.data(), weight_grad.data(), norm_bias_grad.data(), M, C, B, 1);
    for (auto* maps : {&out, &qkv_grad, &hidden_grad, &active, &sum, &branch_grad}) give(*maps);
    for (auto* numbers : {&bias_grad, &scale_grad, &table_grad, &weight_grad, &norm_bias_grad}) give(*numbers);
}

}  // namespace

int main(int, char** names) {
    from = fopen(names[1], "rb"), to = fopen(names[2], "wb");
    if (!from || !to) return 2;
    auto n = take<int64_t>(10);
    n[0] == 0 ? run<float>(0, n) : run<uint16_t>((int)n[0], n);
    return fclose(to) != 0;
}
