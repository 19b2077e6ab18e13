// A Python dict into a struct, by a table of its fields: every value typed and bounded, errors that name the field.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "core/error.h"

namespace minisgl {

[[noreturn]] inline void wrong_type(const char* field, const char* expected, pybind11::handle value) {
  throw pybind11::type_error(concat(field, " must be ", expected, ", got ", Py_TYPE(value.ptr())->tp_name));
}

// Integers, also those of NumPy; bool is not one of them.
template <typename Integer>
Integer read_integer(const char* field, pybind11::handle value) {
  if (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr())) wrong_type(field, "an integer", value);
  const auto number = pybind11::reinterpret_steal<pybind11::object>(PyNumber_Index(value.ptr()));
  if (!number) throw pybind11::error_already_set();
  bool fits;
  Integer result;
  if constexpr (std::is_same_v<Integer, std::uint64_t>) {
    result = PyLong_AsUnsignedLongLong(number.ptr());
    fits = !PyErr_Occurred();
    if (!fits) PyErr_Clear();
  } else {
    int overflow = 0;
    const long long wide = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (wide == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
    fits = overflow == 0 && wide >= std::numeric_limits<Integer>::min() && wide <= std::numeric_limits<Integer>::max();
    result = static_cast<Integer>(wide);
  }
  if (!fits) {
    throw pybind11::value_error(concat(field, " must be between ", std::numeric_limits<Integer>::min(), " and ",
                                       std::numeric_limits<Integer>::max()));
  }
  return result;
}

inline double read_number(const char* field, pybind11::handle value) {
  if (!PyFloat_Check(value.ptr()) && (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr()))) {
    wrong_type(field, "a number", value);
  }
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    throw pybind11::value_error(concat(field, " is too large"));
  }
  return number;  // infinities and NaN are refused with the field's own range
}

inline bool read_bool(const char* field, pybind11::handle value) {
  if (!PyBool_Check(value.ptr())) wrong_type(field, "a bool", value);
  return value.ptr() == Py_True;
}

// Calls read(item) for each item of a list or tuple.
template <typename Read>
void read_items(const char* field, pybind11::handle value, const Read& read) {
  if (!PyList_Check(value.ptr()) && !PyTuple_Check(value.ptr())) wrong_type(field, "a list", value);
  // A copy: reading an item may run Python code that changes a list.
  const auto items = pybind11::reinterpret_steal<pybind11::tuple>(PySequence_Tuple(value.ptr()));
  if (!items) throw pybind11::error_already_set();
  for (const pybind11::handle item : items) read(item);
}

inline std::vector<std::int32_t> read_tokens(const char* field, pybind11::handle value) {
  std::vector<std::int32_t> tokens;
  tokens.reserve(PyObject_LengthHint(value.ptr(), 0));
  read_items(field, value, [&](pybind11::handle item) { tokens.push_back(read_integer<std::int32_t>(field, item)); });
  return tokens;
}

inline std::string read_text(const char* field, pybind11::handle value) {
  if (!PyUnicode_Check(value.ptr())) wrong_type(field, "a str", value);
  return value.cast<std::string>();
}

// Reads what the target's type asks for.
template <typename Target>
void read_field(const char* field, pybind11::handle value, Target& target) {
  if constexpr (std::is_same_v<Target, bool>) {
    target = read_bool(field, value);
  } else if constexpr (std::is_same_v<Target, std::string>) {
    target = read_text(field, value);
  } else if constexpr (std::is_same_v<Target, std::vector<std::int32_t>>) {
    target = read_tokens(field, value);
  } else if constexpr (std::is_floating_point_v<Target>) {
    target = static_cast<Target>(read_number(field, value));
  } else {
    target = read_integer<Target>(field, value);
  }
}

// By the field's name: where its value goes.
template <typename Struct>
using FieldTable = std::unordered_map<std::string, void (*)(const char* field, pybind11::handle value, Struct& target)>;

// Throws TypeError for a wrong type or a key that the table doesn't name, ValueError for a number that doesn't fit.
// `whose` ends the sentence about a key: "the request".
template <typename Struct>
void read_fields(const char* whose, const pybind11::dict& fields, const FieldTable<Struct>& table, Struct& target) {
  // A copy: reading a value may run Python code that changes the dict.
  for (const auto& [key, value] : pybind11::reinterpret_steal<pybind11::dict>(PyDict_Copy(fields.ptr()))) {
    if (!PyUnicode_Check(key.ptr())) wrong_type(concat("a key of ", whose).c_str(), "a str", key);
    const auto reader = table.find(key.template cast<std::string>());
    if (reader == table.end()) {
      throw pybind11::type_error(concat("unknown field ", std::string(pybind11::repr(key)), " in ", whose));
    }
    reader->second(reader->first.c_str(), value, target);
  }
}

}  // namespace minisgl
