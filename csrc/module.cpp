// The extension as Python imports it: an empty module. Its operations register themselves while it is loaded.
#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(aapa, m) {
  m.def(
      "segment_sentences(Tensor token, Tensor cu_seqlens, Tensor classes, Tensor next, Tensor cut, Tensor mark) -> "
      "Tensor");
  m.def("head_statistics(Tensor logits, Tensor column, Tensor? scale) -> Tensor");
  m.def(
      "head_gradient_(Tensor(a!) logits, Tensor column, Tensor? scale, Tensor lse, Tensor logprob_grad, "
      "Tensor entropy, Tensor? entropy_grad) -> ()");
  m.def("head_instruction_set() -> str");
  m.def("sentence_means(Tensor hidden, Tensor cu_sents) -> Tensor");
}

extern "C" PyObject* PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
