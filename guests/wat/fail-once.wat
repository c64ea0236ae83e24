;; Writes 4000 lines and fails with 1 the first time; the next times it writes
;; 4000 others and ends with 0. A file in the first directory that it finds open
;; tells it whether it was there before.
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "been-here")
  (data (i32.const 96) "first\n")
  (data (i32.const 112) "second\n")
  (func (export "_start") (local $left i32) (local $code i32)
    ;; oflags 5: make it, and fail if it is there; rights 64: fd_write.
    (if (i32.eqz (call $path_open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 9)
          (i32.const 5) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 128)))
      (then
        (i32.store (i32.const 0) (i32.const 96))
        (i32.store (i32.const 4) (i32.const 6))
        (local.set $code (i32.const 1)))
      (else
        (i32.store (i32.const 0) (i32.const 112))
        (i32.store (i32.const 4) (i32.const 7))))
    (local.set $left (i32.const 4000))
    (loop $again
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $again (local.get $left)))
    (call $proc_exit (local.get $code))))
