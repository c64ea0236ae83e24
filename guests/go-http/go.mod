module krustlet.dev/guests/go-http

go 1.24
