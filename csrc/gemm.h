#pragma once

namespace dynprune {

// Whether the small products run on oneDNN's brgemm (false: BLAS).
bool has_brgemm();

// Whether it multiplies bfloat16 on this CPU's own instructions, AMX or AVX-512 (false: float32 products).
bool has_brgemm_bf16();

}  // namespace dynprune
