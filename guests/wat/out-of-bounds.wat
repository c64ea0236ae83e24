;; Loads far beyond its one page of memory.
(module
  (memory (export "memory") 1 1)
  (func (export "_start")
    (drop (i32.load (i32.const 0x7fffffff)))))
