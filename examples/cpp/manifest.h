// What an artifact takes and gives, and the check of inputs against it.
//
// The check comes before the call because generated code trusts its inputs: an index out of range,
// a length that the model was not made for or an instruction that the processor does not know would
// end the process.
#pragma once

#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "dimension.h"
#include "json.h"

using Bounds = std::pair<int64_t, int64_t>;

// An input or output; a dimension is a length ("8"), an expression of symbols or "?".
struct Info {
  std::string name;
  std::string dtype;
  std::vector<std::string> shape;
  std::optional<Bounds> bounds;  // of the values of an input of indices
};

// Dtype and shape by name.
using Types = std::map<std::string, std::pair<std::string, std::vector<int64_t>>>;

struct Manifest {
  std::vector<Info> inputs;
  std::vector<Info> outputs;
  std::vector<std::string> parameters;  // in the order in which the module takes them
  std::map<std::string, Bounds> dimension_bounds;

  explicit Manifest(const std::string& folder) {
    const std::string path = folder + "/manifest.json";
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " cannot be opened: is it an undense artifact?");
    const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    try {
      Read(JsonReader(text).Read());
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(path + ": " + error.what());
    }
  }

  // Holds dtypes and shapes by name against the inputs; throws std::runtime_error that names the
  // input, what was expected and what was given.
  void Check(const Types& given) const {
    Lengths lengths;
    for (const Info& info : inputs) {
      const auto found = given.find(info.name);
      if (found == given.end()) throw std::runtime_error(info.name + ": the input is not given");
      const auto& [dtype, shape] = found->second;
      if (dtype != info.dtype)
        throw std::runtime_error(info.name + ": expected " + info.dtype + ", got " + dtype);
      if (shape.size() != info.shape.size()) Refuse(info, shape, "");
      for (size_t i = 0; i < shape.size(); ++i) {
        if (!IsSymbol(info.shape[i])) continue;
        const int64_t known = lengths.emplace(info.shape[i], shape[i]).first->second;
        if (known != shape[i])
          Refuse(info, shape, info.shape[i] + " is " + std::to_string(known) + " elsewhere");
      }
    }
    for (const Info& info : inputs) {
      const auto& shape = given.at(info.name).second;
      for (size_t i = 0; i < shape.size(); ++i) {
        const auto wanted = Evaluate(info.shape[i], lengths);
        if (!wanted || *wanted == shape[i]) continue;
        const std::string length = std::to_string(*wanted);
        Refuse(info, shape, length == info.shape[i] ? "" : info.shape[i] + " is " + length);
      }
    }
    for (const auto& [dimension, bounds] : dimension_bounds) {
      const auto length = Evaluate(dimension, lengths);
      if (length && (*length < bounds.first || *length > bounds.second))
        throw std::runtime_error(dimension + ": expected " + std::to_string(bounds.first) + " to " +
                                 std::to_string(bounds.second) + ", got " +
                                 std::to_string(*length));
    }
    for (const auto& item : given) {
      bool known = false;
      for (const Info& info : inputs) known = known || info.name == item.first;
      if (!known) throw std::runtime_error(item.first + ": is no input of the module");
    }
  }

 private:
  static constexpr int64_t kFormatVersion = 1;

  void Read(const Json& document) {
    if (document.at("format").text != "undense artifact" ||
        document.at("format_version").integer != kFormatVersion)
      throw std::runtime_error("no manifest of format version " + std::to_string(kFormatVersion));
    if (document.at("files").object.count("module.so") == 0)
      throw std::runtime_error("the artifact has no module.so: compile it for target llvm");
    for (const Json& item : document.at("inputs").list) inputs.push_back(ReadInfo(item));
    for (const Json& item : document.at("outputs").list) outputs.push_back(ReadInfo(item));
    for (const Json& item : document.at("parameters").list) parameters.push_back(item.text);
    for (const auto& [name, item] : document.at("dimension_bounds").object)
      dimension_bounds[name] = {item.list.at(0).integer, item.list.at(1).integer};
    CheckProcessor(document.at("cpu_features").list);
  }

  static Info ReadInfo(const Json& item) {
    Info info{item.at("name").text, item.at("dtype").text, {}, {}};
    for (const Json& length : item.at("shape").list) {
      if (length.kind == Json::kInteger) {
        info.shape.push_back(std::to_string(length.integer));
      } else {
        info.shape.push_back(length.kind == Json::kText ? length.text : "?");
      }
    }
    const Json& bounds = item.at("bounds");
    if (bounds.kind == Json::kList)
      info.bounds = Bounds(bounds.list.at(0).integer, bounds.list.at(1).integer);
    return info;
  }

  static void CheckProcessor(const std::vector<Json>& wanted) {
    std::ifstream file("/proc/cpuinfo");
    std::set<std::string> flags;
    for (std::string line; std::getline(file, line);) {
      if (line.compare(0, 5, "flags") != 0) continue;
      std::istringstream words(line.substr(line.find(':') + 1));
      flags = {std::istream_iterator<std::string>(words), std::istream_iterator<std::string>()};
      break;
    }
    for (const Json& feature : wanted) {
      if (!flags.empty() && flags.count(feature.text) == 0)
        throw std::runtime_error("the module was compiled for a processor with " + feature.text +
                                 ", which this one lacks: compile the model again");
    }
  }

  [[noreturn]] static void Refuse(const Info& info, const std::vector<int64_t>& shape,
                                  const std::string& why) {
    std::string expected, got;
    for (const auto& length : info.shape) expected += (expected.empty() ? "" : ", ") + length;
    for (const auto length : shape) got += (got.empty() ? "" : ", ") + std::to_string(length);
    throw std::runtime_error(info.name + ": expected shape [" + expected + "], got [" + got + "]" +
                             (why.empty() ? "" : "; " + why));
  }
};
