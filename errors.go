package main

import (
	"errors"
	"fmt"
	"net/http"
)

// apiError is an error that knows which status a client gets for it.
type apiError struct {
	status int
	msg    string
}

func (e *apiError) Error() string { return e.msg }

// errorf makes an error that api.go answers with status and {"message": …}.
func errorf(status int, format string, args ...any) error {
	return &apiError{status, fmt.Sprintf(format, args...)}
}

// counted is so many of a thing in words, as in 1 container.
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// statusOf is the status that a client gets for err: 500 where nobody chose one.
func statusOf(err error) int {
	var ae *apiError
	if errors.As(err, &ae) {
		return ae.status
	}
	return http.StatusInternalServerError
}

var errBrokeOff = errorf(http.StatusBadRequest, "the client broke off")
