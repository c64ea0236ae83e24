;; Wants two functions that no host offers.
(module
  (import "wasi_snapshot_preview1" "fd_fly" (func (param i32) (result i32)))
  (import "env" "launch" (func))
  (memory (export "memory") 1)
  (func (export "_start")))
