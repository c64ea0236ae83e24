;; Prints one line to standard output and one to standard error.
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\20\00\00\00\0c\00\00\00")
  (data (i32.const 8) "\30\00\00\00\0c\00\00\00")
  (data (i32.const 32) "out of wasm\n")
  (data (i32.const 48) "err of wasm\n")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 128)))
    (drop (call $fd_write (i32.const 2) (i32.const 8) (i32.const 1) (i32.const 128)))))
