#pragma once

namespace dynprune {

// Whether the small products run on oneDNN's brgemm (false: BLAS).
bool has_brgemm();

}  // namespace dynprune
