// Dimensions of a manifest: lengths, symbols, and arithmetic of both such as "past + sequence".
#pragma once

#include <cctype>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

using Lengths = std::map<std::string, int64_t>;  // of symbols

// Values of + - * // and brackets; nothing where a symbol is unknown or the text is another thing.
class DimensionReader {
 public:
  DimensionReader(const std::string& text, const Lengths& lengths)
      : text_(text), lengths_(lengths) {}

  std::optional<int64_t> Read() {
    const auto value = Sum();
    Blank();
    return at_ == text_.size() ? value : std::nullopt;
  }

 private:
  void Blank() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }

  bool Take(const std::string& word) {
    Blank();
    if (text_.compare(at_, word.size(), word) != 0) return false;
    at_ += word.size();
    return true;
  }

  std::optional<int64_t> Sum() {
    auto value = Product();
    while (value) {
      const bool plus = Take("+");
      if (!plus && !Take("-")) break;
      const auto right = Product();
      if (!right) return right;
      value = plus ? *value + *right : *value - *right;
    }
    return value;
  }

  std::optional<int64_t> Product() {
    auto value = Term();
    while (value) {
      const bool divide = Take("//");
      if (!divide && !Take("*")) break;
      const auto right = Term();
      if (!right || (divide && *right <= 0)) return std::nullopt;
      value = divide ? Floor(*value, *right) : *value * *right;
    }
    return value;
  }

  static int64_t Floor(int64_t value, int64_t by) {
    return value / by - (value % by < 0 ? 1 : 0);
  }

  std::optional<int64_t> Term() {
    if (Take("(")) {
      const auto value = Sum();
      return Take(")") ? value : std::nullopt;
    }
    Blank();
    const size_t start = at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) ||
                                  text_[at_] == '_'))
      ++at_;
    const std::string word = text_.substr(start, at_ - start);
    if (!word.empty() && word.find_first_not_of("0123456789") == std::string::npos)
      return std::stoll(word);
    const auto found = lengths_.find(word);
    return found == lengths_.end() ? std::nullopt : std::optional<int64_t>(found->second);
  }

  const std::string& text_;
  const Lengths& lengths_;
  size_t at_ = 0;
};

inline std::optional<int64_t> Evaluate(const std::string& dimension, const Lengths& lengths) {
  const auto found = lengths.find(dimension);
  if (found != lengths.end()) return found->second;  // a symbol may be spelled in any way
  return DimensionReader(dimension, lengths).Read();
}

// Whether a dimension stands for itself: no length, no arithmetic, not unknown.
inline bool IsSymbol(const std::string& dimension) {
  return dimension != "?" && dimension.find_first_of("+-*/( ") == std::string::npos &&
         dimension.find_first_not_of("0123456789") != std::string::npos;
}
