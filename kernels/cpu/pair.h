// Two vectors as one of twice the lanes. GCC has vectors wider than a register too, but keeps them in memory, and
// compares them lane by lane.
#pragma once

#include <cstdint>

#ifndef DYNPRUNE_ISA
#error "DYNPRUNE_ISA (the namespace of this instruction set) is defined by CMakeLists.txt"
#endif

namespace dynprune::DYNPRUNE_ISA {

template <typename T>
struct Pair {
  T low, high;

  Pair& operator+=(Pair b) {
    low += b.low;
    high += b.high;
    return *this;
  }
};

template <typename T>
inline Pair<T> operator+(Pair<T> a, Pair<T> b) {
  return {a.low + b.low, a.high + b.high};
}
template <typename T>
inline Pair<T> operator-(Pair<T> a, Pair<T> b) {
  return {a.low - b.low, a.high - b.high};
}
template <typename T>
inline Pair<T> operator*(Pair<T> a, Pair<T> b) {
  return {a.low * b.low, a.high * b.high};
}
template <typename T>
inline Pair<T> operator/(Pair<T> a, Pair<T> b) {
  return {a.low / b.low, a.high / b.high};
}
template <typename T>
inline Pair<T> operator-(Pair<T> a) {
  return {-a.low, -a.high};
}

// Comparisons give integers, all of whose bits are set where they hold.
template <typename T>
inline auto operator<(Pair<T> a, Pair<T> b) {
  return Pair<decltype(a.low < b.low)>{a.low < b.low, a.high < b.high};
}
template <typename T>
inline auto operator>(Pair<T> a, Pair<T> b) {
  return b < a;
}
template <typename T>
inline auto operator!=(Pair<T> a, Pair<T> b) {
  return Pair<decltype(a.low != b.low)>{a.low != b.low, a.high != b.high};
}
template <typename T>
inline Pair<T> operator|(Pair<T> a, Pair<T> b) {
  return {a.low | b.low, a.high | b.high};
}

// Integers.
template <typename T>
inline Pair<T> operator+(Pair<T> a, int32_t b) {
  return {a.low + b, a.high + b};
}
template <typename T>
inline Pair<T> operator&(Pair<T> a, int32_t b) {
  return {a.low & b, a.high & b};
}
template <typename T>
inline Pair<T> operator<<(Pair<T> a, int b) {
  return {a.low << b, a.high << b};
}

}  // namespace dynprune::DYNPRUNE_ISA
