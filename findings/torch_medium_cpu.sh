#!/usr/bin/env bash
# Expected: torch.set_float32_matmul_precision("medium") lets a GPU compute float32 matrix products with fewer digits; on
#   a CPU a float32 product keeps float32's digits.
# What happens: on a CPU with instructions for bfloat16 the same line makes float32 products bfloat16: the largest error
#   grows from about 5e-7 to 2e-3 of the largest value, five thousand times. "high" changes nothing there, convolutions
#   are not touched, and a float32 tensor looks the same after as before. Many training scripts set it for their GPU.
#   The setting that undoes it for a while is torch.backends.mkldnn.matmul.fp32_precision = "ieee".
# Versions: torch 2.11.0 and 2.15.0, on an Intel Xeon with amx_bf16. On a CPU without such instructions all errors are
#   small; the script says so then and passes.
# Seen on 2026-11-28:
#   torch 2.15.0+cu132, bf16 instructions: True
#   highest: product 5.1e-07, convolution 3.4e-07
#   high: product 5.1e-07, convolution 3.4e-07
#   medium: product 2.4e-03, convolution 3.4e-07
#   medium, mkldnn.matmul set to ieee: product 5.1e-07, convolution 3.4e-07
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with torch==2.15.0 torchvision==0.29.2 timm==1.0.31 torch-pruning==1.6.1 numpy==2.4.6
"$python" - <<'PYTHON'
import torch
import torch.nn.functional as F

words = next((line.split() for line in open("/proc/cpuinfo") if line.startswith(("flags", "Features"))), [])
computes_bf16 = bool({"avx512_bf16", "amx_bf16", "bf16"} & set(words))
print(f"torch {torch.__version__}, bf16 instructions: {computes_bf16}")
torch.manual_seed(0)
a, b = torch.randn(512, 512), torch.randn(512, 512)
x, w = torch.randn(8, 64, 32, 32), torch.randn(64, 64, 3, 3)
product, convolution = a.double() @ b.double(), F.conv2d(x.double(), w.double(), padding=1)


def errors(said):
    pairs = (a @ b, product), (F.conv2d(x, w, padding=1), convolution)
    found = [float((got - exact).abs().max() / exact.abs().max()) for got, exact in pairs]
    print(f"{said}: product {found[0]:.1e}, convolution {found[1]:.1e}")
    return found


for precision in ("highest", "high", "medium"):
    torch.set_float32_matmul_precision(precision)
    seen = errors(precision)
    assert seen[1] < 1e-5 and (seen[0] > 1e-4) == (precision == "medium" and computes_bf16), seen
torch.backends.mkldnn.matmul.fp32_precision = "ieee"
assert max(errors("medium, mkldnn.matmul set to ieee")) < 1e-5
PYTHON
