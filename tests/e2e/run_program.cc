#include "run_program.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

namespace rarefy::testing {

ProgramResult run_program(const std::vector<std::string>& arguments, const ProgramOptions& options) {
  std::signal(SIGPIPE, SIG_IGN);
  int input[2], output[2], error[2];
  if (pipe(input) != 0 || pipe(output) != 0 || pipe(error) != 0) return {};
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGPIPE, SIG_DFL);
    dup2(input[0], STDIN_FILENO);
    const int out = options.stdout_path.empty() ? output[1] : open(options.stdout_path.c_str(), O_WRONLY | O_CREAT, 0644);
    dup2(out, STDOUT_FILENO);
    dup2(error[1], STDERR_FILENO);
    for (const int fd : {input[0], input[1], output[0], output[1], error[0], error[1]}) close(fd);
    std::vector<char*> argv = {const_cast<char*>(RAREFY_CLI)};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    execv(RAREFY_CLI, argv.data());
    _exit(127);
  }
  close(input[0]), close(output[1]), close(error[1]);
  // Inputs of these tests fit into a pipe's buffer.
  if (!options.input.empty() && write(input[1], options.input.data(), options.input.size()) < 0) kill(child, SIGKILL);
  close(input[1]);

  ProgramResult result;
  bool acted = false;
  pollfd streams[2] = {{output[0], POLLIN, 0}, {error[0], POLLIN, 0}};
  while (streams[0].fd >= 0 || streams[1].fd >= 0) {
    if (poll(streams, 2, -1) < 0) break;
    for (pollfd& stream : streams) {
      if (stream.fd < 0 || stream.revents == 0) continue;
      char buffer[4096];
      const ssize_t count = read(stream.fd, buffer, sizeof buffer);
      const bool is_output = &stream == &streams[0];
      if (count <= 0) {
        close(stream.fd);
        stream.fd = -1;
        continue;
      }
      (is_output ? result.out : result.err).append(buffer, static_cast<size_t>(count));
      if (!is_output || acted) continue;
      if (options.interrupt) kill(child, SIGINT);
      if (options.close_output) close(stream.fd), stream.fd = -1;
      acted = true;
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace rarefy::testing
