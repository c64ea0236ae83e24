;; Returns from its start function, which is exit code 0.
(module
  (memory (export "memory") 1)
  (func (export "_start")))
