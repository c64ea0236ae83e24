;; A command with a second entry: each prints which of the two was called.
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\20\00\00\00\0c\00\00\00")
  (data (i32.const 8) "\30\00\00\00\0b\00\00\00")
  (data (i32.const 32) "from _start\n")
  (data (i32.const 48) "from other\n")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 128))))
  (func (export "other")
    (drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 128)))))
