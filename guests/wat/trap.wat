;; Traps two calls deep; the names belong into the backtrace.
(module
  (memory (export "memory") 1)
  (func $deepest unreachable)
  (func $middle (call $deepest))
  (func $start (export "_start") (call $middle)))
