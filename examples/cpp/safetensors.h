// Reads and writes safetensors files: an 8-byte length, a JSON header, then the bytes of tensors.
#pragma once

#include <dlpack/dlpack.h>

#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "json.h"

// A dtype as safetensors, numpy (and so the manifest) and DLPack name it.
struct Dtype {
  const char* safetensors;
  const char* numpy;
  DLDataType dlpack;
};

constexpr Dtype kDtypes[] = {
    {"BOOL", "bool", {kDLBool, 8, 1}},      {"U8", "uint8", {kDLUInt, 8, 1}},
    {"I8", "int8", {kDLInt, 8, 1}},         {"U16", "uint16", {kDLUInt, 16, 1}},
    {"I16", "int16", {kDLInt, 16, 1}},      {"U32", "uint32", {kDLUInt, 32, 1}},
    {"I32", "int32", {kDLInt, 32, 1}},      {"U64", "uint64", {kDLUInt, 64, 1}},
    {"I64", "int64", {kDLInt, 64, 1}},      {"F16", "float16", {kDLFloat, 16, 1}},
    {"BF16", "bfloat16", {kDLBfloat, 16, 1}}, {"F32", "float32", {kDLFloat, 32, 1}},
    {"F64", "float64", {kDLFloat, 64, 1}},
};

inline const Dtype& DtypeOf(DLDataType type) {
  for (const Dtype& known : kDtypes) {
    if (known.dlpack.code == type.code && known.dlpack.bits == type.bits && type.lanes == 1)
      return known;
  }
  throw std::runtime_error("a tensor has a dtype that safetensors cannot hold");
}

// Where a tensor lies in a file, and what it is.
struct Entry {
  const Dtype* dtype;
  std::vector<int64_t> shape;
  uint64_t begin;  // in the file, in bytes
  uint64_t bytes;
};

// The tensors of a file by name; their bytes are read one tensor at a time.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path) : path_(path), file_(path, std::ios::binary) {
    if (!file_) Fail("cannot be opened");
    file_.seekg(0, std::ios::end);
    const auto size = static_cast<uint64_t>(file_.tellg());
    file_.seekg(0);
    uint64_t length = 0;
    file_.read(reinterpret_cast<char*>(&length), sizeof length);
    if (!file_ || length > size - sizeof length) Fail("is no safetensors file");
    std::string header(length, '\0');
    file_.read(header.data(), static_cast<std::streamsize>(length));
    try {
      const uint64_t data = sizeof length + length;
      for (const auto& [name, item] : JsonReader(header).Read().object) {
        if (name != "__metadata__") entries_[name] = ReadEntry(name, item, data, size);
      }
    } catch (const std::runtime_error& error) {
      Fail(error.what());
    }
  }

  const std::map<std::string, Entry>& entries() const { return entries_; }

  const Entry& entry(const std::string& name) const {
    const auto found = entries_.find(name);
    if (found == entries_.end()) Fail("holds no tensor '" + name + "'");
    return found->second;
  }

  // Copies the bytes of a tensor to memory that has room for them.
  void Read(const Entry& entry, void* memory) {
    file_.seekg(static_cast<std::streamoff>(entry.begin));
    file_.read(static_cast<char*>(memory), static_cast<std::streamsize>(entry.bytes));
    if (!file_) Fail("ends too early");
  }

 private:
  [[noreturn]] void Fail(const std::string& what) const {
    throw std::runtime_error(path_ + " " + what);
  }

  static Entry ReadEntry(const std::string& name, const Json& item, uint64_t data, uint64_t size) {
    Entry entry{nullptr, {}, 0, 0};
    for (const Dtype& known : kDtypes) {
      if (item.at("dtype").text == known.safetensors) entry.dtype = &known;
    }
    if (entry.dtype == nullptr)
      throw std::runtime_error("has '" + name + "' of unknown dtype " + item.at("dtype").text);
    uint64_t bytes = entry.dtype->dlpack.bits / 8;
    for (const Json& length : item.at("shape").list) {
      if (length.integer < 0) throw std::runtime_error("has a negative length in '" + name + "'");
      entry.shape.push_back(length.integer);
      bytes *= static_cast<uint64_t>(length.integer);
    }
    const auto& offsets = item.at("data_offsets").list;
    if (offsets.size() == 2) {
      entry.begin = data + static_cast<uint64_t>(offsets[0].integer);
      entry.bytes = static_cast<uint64_t>(offsets[1].integer - offsets[0].integer);
    }
    if (offsets.size() != 2 || entry.bytes != bytes || entry.begin > size ||
        entry.bytes > size - entry.begin)
      throw std::runtime_error("has a damaged entry '" + name + "'");
    return entry;
  }

  std::string path_;
  std::ifstream file_;
  std::map<std::string, Entry> entries_;
};

// Writes contiguous tensors, in the order given, under names without quotes and backslashes.
inline void WriteSafetensors(const std::string& path,
                             const std::vector<std::pair<std::string, const DLTensor*>>& tensors) {
  std::string header = "{";
  std::vector<uint64_t> sizes;
  uint64_t end = 0;
  for (const auto& [name, tensor] : tensors) {
    uint64_t bytes = tensor->dtype.bits / 8;
    std::string shape;
    for (int32_t i = 0; i < tensor->ndim; ++i) {
      bytes *= static_cast<uint64_t>(tensor->shape[i]);
      shape += (i ? "," : "") + std::to_string(tensor->shape[i]);
    }
    header += (sizes.empty() ? "\"" : ",\"") + name + "\":{\"dtype\":\"" +
              DtypeOf(tensor->dtype).safetensors + "\",\"shape\":[" + shape +
              "],\"data_offsets\":[" + std::to_string(end) + "," + std::to_string(end + bytes) +
              "]}";
    sizes.push_back(bytes);
    end += bytes;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::ofstream file(path, std::ios::binary);
  const uint64_t length = header.size();
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file.write(header.data(), static_cast<std::streamsize>(length));
  for (size_t i = 0; i < tensors.size(); ++i) {
    const DLTensor* tensor = tensors[i].second;
    file.write(static_cast<const char*>(tensor->data) + tensor->byte_offset,
               static_cast<std::streamsize>(sizes[i]));
  }
  if (!file.flush()) throw std::runtime_error(path + " cannot be written");
}
