// A reader of JSON: what the manifest and the headers of safetensors files are written in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

// One value. Numbers without fraction are integers; `text` holds strings.
struct Json {
  enum Kind { kNull, kBool, kInteger, kReal, kText, kList, kObject };
  Kind kind = kNull;
  bool truth = false;
  int64_t integer = 0;
  double real = 0;
  std::string text;
  std::vector<Json> list;
  std::map<std::string, Json> object;

  const Json& at(const std::string& name) const {
    const auto found = object.find(name);
    if (found == object.end()) throw std::runtime_error("no field '" + name + "'");
    return found->second;
  }
};

// Reads a whole document of UTF-8; throws std::runtime_error with the place of a mistake.
class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : text_(text) {}

  Json Read() {
    Json value = Value();
    Blank();
    if (at_ != text_.size()) Fail("more follows the value");
    return value;
  }

 private:
  static constexpr int kDeepest = 64;

  [[noreturn]] void Fail(const std::string& what) const {
    throw std::runtime_error("JSON at byte " + std::to_string(at_) + ": " + what);
  }

  void Blank() {
    at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size());
  }

  char Next() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool Take(const std::string& word) {
    if (text_.compare(at_, word.size(), word) != 0) return false;
    at_ += word.size();
    return true;
  }

  void Want(const std::string& word) {
    Blank();
    if (!Take(word)) Fail("expected '" + word + "'");
  }

  Json Value() {
    Blank();
    Json value;
    if (++depth_ > kDeepest) Fail("too deep");
    if (Next() == '{') {
      value.kind = Json::kObject;
      Items('}', [&] {
        Blank();
        const std::string name = Text();
        Want(":");
        value.object[name] = Value();
      });
    } else if (Next() == '[') {
      value.kind = Json::kList;
      Items(']', [&] { value.list.push_back(Value()); });
    } else if (Next() == '"') {
      value.kind = Json::kText;
      value.text = Text();
    } else if (Next() == 't' || Next() == 'f') {
      value.kind = Json::kBool;
      value.truth = Take("true");
      if (!value.truth) Want("false");
    } else if (Next() == 'n') {
      Want("null");
    } else {
      Number(&value);
    }
    --depth_;
    return value;
  }

  template <typename Item>
  void Items(char end, Item item) {
    ++at_;
    Blank();
    if (Next() == end) {
      ++at_;
      return;
    }
    while (true) {
      item();
      Blank();
      if (Next() == end) break;
      Want(",");
    }
    ++at_;
  }

  void Number(Json* value) {
    const size_t start = at_;
    at_ = std::min(text_.find_first_not_of("+-.eE0123456789", at_), text_.size());
    const std::string digits = text_.substr(start, at_ - start);
    try {
      size_t used = 0;
      if (digits.find_first_of(".eE") == std::string::npos) {
        value->kind = Json::kInteger;
        value->integer = std::stoll(digits, &used);
      } else {
        value->kind = Json::kReal;
        value->real = std::stod(digits, &used);
      }
      if (used == digits.size()) return;
    } catch (const std::exception&) {
    }
    at_ = start;
    Fail("no value");
  }

  std::string Text() {
    if (Next() != '"') Fail("expected a string");
    std::string found;
    for (++at_; Next() != '"'; ++at_) {
      if (at_ >= text_.size()) Fail("a string does not end");
      if (text_[at_] != '\\') {
        found += text_[at_];
        continue;
      }
      ++at_;
      const size_t short_form = std::string("\"\\/bfnrt").find(Next());
      if (Next() == 'u') {
        Append(&found, Unit());
      } else if (Next() != '\0' && short_form != std::string::npos) {
        found += "\"\\/\b\f\n\r\t"[short_form];
      } else {
        Fail("no escape");
      }
    }
    ++at_;
    return found;
  }

  // The code point of \uXXXX, or of two of them that are a surrogate pair; ends at the last digit.
  uint32_t Unit() {
    const uint32_t high = Hexadecimal();
    if (high < 0xD800 || high > 0xDBFF) return high;
    ++at_;
    if (!Take("\\")) Fail("half a surrogate pair");
    return 0x10000 + ((high - 0xD800) << 10) + (Hexadecimal() - 0xDC00);
  }

  uint32_t Hexadecimal() {
    const std::string digits = text_.substr(at_ + 1, 4);
    const bool whole = digits.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
    if (digits.size() != 4 || !whole) Fail("no four hexadecimal digits");
    at_ += 4;
    return static_cast<uint32_t>(std::stoul(digits, nullptr, 16));
  }

  static void Append(std::string* text, uint32_t point) {
    if (point < 0x80) {
      *text += static_cast<char>(point);
    } else if (point < 0x800) {
      *text += static_cast<char>(0xC0 | point >> 6);
      *text += static_cast<char>(0x80 | (point & 0x3F));
    } else if (point < 0x10000) {
      *text += static_cast<char>(0xE0 | point >> 12);
      *text += static_cast<char>(0x80 | (point >> 6 & 0x3F));
      *text += static_cast<char>(0x80 | (point & 0x3F));
    } else {
      *text += static_cast<char>(0xF0 | point >> 18);
      *text += static_cast<char>(0x80 | (point >> 12 & 0x3F));
      *text += static_cast<char>(0x80 | (point >> 6 & 0x3F));
      *text += static_cast<char>(0x80 | (point & 0x3F));
    }
  }

  const std::string& text_;
  size_t at_ = 0;
  int depth_ = 0;
};
